"""A real JupyterLab with jupyter-scheduler: by the calls that its dialog makes, and in a browser."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.gallery.browser import Browser, chromium
from tests.support.hosts import REPOSITORY, SECONDS, Host
from tests.support.pages import blocks
from tests.support.polling import pause

TOKEN = "of-the-test"  # noqa: S105 - no secret
# The line of the page that configures the scheduler, and its example of options.
CONFIGURATION, OPTIONS = (
    block.text
    for block in blocks(REPOSITORY / "docs" / "how-to" / "jupyterlab.md")
    if block.language == "python"
)
ENDED = {"COMPLETED", "FAILED", "STOPPED"}
# Only a hanging test waits so long.
WAIT_SECONDS = 120.0

SeenT = TypeVar("SeenT")


def eventually(look: Callable[[], SeenT]) -> SeenT:
    """Waits until what a look returns is true, and returns it."""
    end = time.monotonic() + WAIT_SECONDS
    while not (seen := look()):
        assert time.monotonic() < end, "It was never so."
        pause()
    return seen


class JupyterLab:
    """Runs `jupyter lab` between `with` and its end, with its settings, jobs and notebooks in one folder.

    Args:
        host: The environment that it is installed in.
        folder: The folder; what it has from a former JupyterLab is found again.
        target: The server that executes its jobs.
        configuration: What its configuration has beside the line that the page names.
        variables: Environment variables.
    """

    def __init__(
        self, host: Host, folder: Path, target: str, configuration: str = "", **variables: str
    ) -> None:
        self.root = folder / "notebooks"
        self._runtime = folder / "runtime"
        self._log = folder / "log"
        places = {
            "HOME": folder,
            "JUPYTER_RUNTIME_DIR": self._runtime,
            "JUPYTER_CONFIG_DIR": folder / "config",
        }
        places |= {"JUPYTER_DATA_DIR": folder / "data", "TMPDIR": folder / "temporary"}
        for path in (self.root, *places.values()):
            path.mkdir(exist_ok=True)
        (folder / "config" / "jupyter_server_config.py").write_text(CONFIGURATION + configuration)
        self._environment = host.environment(
            target, **{name: str(path) for name, path in places.items()}, **variables
        )
        self._command = [host.program("jupyter"), "lab", "--no-browser", "--allow-root", "--port=0"]
        self._command += ["--ip=127.0.0.1", f"--IdentityProvider.token={TOKEN}", "--LabApp.news_url=None"]
        self.url = ""

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.root, env=self._environment, stdout=log, stderr=log
            )
        eventually(self._answers)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        # It writes the file before it listens.
        found = self._runtime / f"jpserver-{self.process.pid}.json"
        try:
            self.url = json.loads(found.read_text())["url"]
            self.call("GET", "config")
        except (FileNotFoundError, ValueError, ConnectionError):
            return False
        except URLError as error:
            if not isinstance(error.reason, ConnectionError):
                raise
            return False
        return True

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Calls the API of jupyter-scheduler.

        Raises:
            HTTPError: It answered with an error.
        """
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}scheduler/{path}", data, method=method)  # noqa: S310 - http
        request.add_header("Authorization", f"token {TOKEN}")
        with urlopen(request, timeout=WAIT_SECONDS) as answer:  # noqa: S310 - http
            return json.loads(answer.read() or "null")

    def refusal(self, method: str, path: str, body: Any = None) -> str:
        """The message of the error that the API answers with."""
        try:
            self.call(method, path, body)
        except HTTPError as error:
            message: str = json.loads(error.read())["message"]
            return message
        raise AssertionError("It succeeded.")

    def create(self, notebook: str, **fields: Any) -> str:
        """Makes a job as the dialog does, and returns its id."""
        job = {
            "name": Path(notebook).stem,
            "input_uri": notebook,
            "runtime_environment_name": "python3",
            "output_formats": ["ipynb"],
            **fields,
        }
        created: str = self.call("POST", "jobs", job)["job_id"]
        return created

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        found: dict[str, Any] = self.call("GET", f"jobs/{job_id}")
        return found

    def until(self, job_id: str, *statuses: str) -> dict[str, Any]:
        """Waits until a job is in one of these states."""
        end = {*statuses, *ENDED}
        eventually(lambda: self.job(job_id)["status"] in end)
        job = self.job(job_id)
        assert job["status"] in statuses, (job, self.log())
        return job

    def stop(self, job_id: str) -> None:
        """Stops a job as JupyterLab's Stop does."""
        self.call("PATCH", f"jobs/{job_id}", {"status": "STOPPED"})

    def download(self, job_id: str) -> Path:
        """Downloads the files of a job into JupyterLab's folder, and returns where they are."""
        self.call("GET", f"jobs/{job_id}/download_files")
        eventually(lambda: self.job(job_id)["downloaded"])
        (folder,) = self.root.glob(f"jobs/*-{job_id}")
        return folder


class LabPage:
    """JupyterLab in a browser, and what a user does there with jobs."""

    def __init__(self, browser: Browser, lab: JupyterLab) -> None:
        self._driver = browser.driver
        browser.resize(1400, 1000)
        self._driver.get(f"{lab.url}lab?token={TOKEN}&reset")

    def find(self, selector: str, text: str = "") -> WebElement:
        """Waits until an element that can be seen and used has a text, and returns it."""

        def look(_: object) -> list[WebElement]:
            found = self._driver.find_elements(By.CSS_SELECTOR, selector)
            return [
                one for one in found if one.is_displayed() and one.is_enabled() and text in {"", one.text}
            ]

        waiting = WebDriverWait(
            self._driver, WAIT_SECONDS, ignored_exceptions=[StaleElementReferenceException]
        )
        return waiting.until(look, f"never seen: {selector} {text}")[0]

    def open_dialog(self, name: str) -> None:
        """Opens the dialog for a notebook of the root folder, from its menu in the file browser."""
        self.find("button[title^='Refresh'], jp-button[title^='Refresh']").click()
        item = self.find(".jp-DirListing-itemName", name)
        ActionChains(self._driver).context_click(item).perform()
        self.find(".lm-Menu-itemLabel", "Create Job").click()
        self.find("h1", "Create Job")

    def create(self, **parameters: str) -> None:
        """Fills in the parameters in the open dialog, and creates the job."""
        for index, (name, value) in enumerate(parameters.items()):
            self.find("button[title='Add new parameter']").click()
            self.find(f"input[name='parameter-{index}-name']").send_keys(name)
            self.find(f"input[name='parameter-{index}-value']").send_keys(value + Keys.TAB)
        self.find(".jp-create-job-form button", "Create").click()

    def until(self, name: str, status: str) -> None:
        """Reloads the list, which does not do so by itself, until a job has a status."""

        def look() -> bool:
            self.find(".jp-notebook-jobs-panel button", "Reload").click()
            return status in self._row(name)

        eventually(look)

    def stop(self, name: str) -> None:
        """Stops a job in the list, and confirms it."""
        self.find(f"button[title='Stop \"{name}\"']").click()
        self.find("td button", "Stop").click()

    def open_output(self, name: str, output_format: str) -> str:
        """Downloads the outputs of a job, opens one of them, and returns its text."""
        self.find(f"button[title='Download output files for \"{name}\"']").click()
        self.find(f"a[title^='Open output file \"{name}-']", output_format).click()
        self._driver.switch_to.frame(self.find("iframe"))
        try:
            return self.find("main, body").text
        finally:
            self._driver.switch_to.default_content()
            self.find(".lm-TabBar-tabLabel", "Jobs").click()

    def detail(self, name: str) -> str:
        """Opens the details of a job, and returns their text."""
        self.find(f"a[title='Open detail view for \"{name}\"']").click()
        self.find("button", "Reload Job")
        return self.find(".jp-notebook-jobs-panel").text

    def _row(self, name: str) -> str:
        script = "return document.querySelector(arguments[0])?.closest('tr').innerText ?? ''"
        found: str = self._driver.execute_script(script, f"a[title='Open detail view for \"{name}\"']")
        return found


@contextmanager
def lab_page(lab: JupyterLab, profile: Path) -> Iterator[LabPage]:
    """JupyterLab in a browser between `with` and its end."""
    with chromium(profile) as browser:
        yield LabPage(browser, lab)
