"""nginx in front of a server, configured as ingress-nginx does it for the manifests."""

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import trustme

from tests.container.manifests import Manifest
from tests.support.polling import pause
from tests.support.ports import free_port

NGINX = shutil.which("nginx") or "nginx"
PREFIX = "nginx.ingress.kubernetes.io/"
# The directives of each annotation, in the template of ingress-nginx 1.15.
DIRECTIVES = {
    "proxy-body-size": "client_max_body_size {};",
    "proxy-read-timeout": "proxy_read_timeout {0}s; grpc_read_timeout {0}s;",
    "proxy-send-timeout": "proxy_send_timeout {0}s; grpc_send_timeout {0}s;",
    "proxy-buffering": "proxy_buffering {};",
    "proxy-request-buffering": "proxy_request_buffering {};",
}
PASSES = {"GRPC": "grpc_pass grpc://{};", "HTTP": "proxy_pass http://{};"}
CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_http_version 1.1;
  proxy_set_header Connection "";
  proxy_set_header Host $http_host;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {folder}/certificate;
    ssl_certificate_key {folder}/certificate;
    location / {{ return 404; }}
    {locations}
  }}
}}
"""


class Nginx:
    """A started nginx; a context manager that ends it.

    Args:
        folder: Where its files are.
        ingresses: The Ingresses that it serves.
        backends: The address of each port of the Service, by its name.
        changed: Annotations with other values, by their names without the prefix.
    """

    def __init__(
        self,
        folder: Path,
        ingresses: list[Manifest],
        backends: Mapping[str, str],
        changed: Mapping[str, str] | None = None,
    ) -> None:
        authority = trustme.CA()
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(folder / "certificate")
        self.ca = folder / "ca.crt"
        authority.cert_pem.write_to_path(self.ca)
        port = free_port()
        self.target = f"localhost:{port}"
        self._file, self._log = folder / "nginx.conf", folder / "log"
        locations = [line for one in ingresses for line in _locations(one, backends, changed or {})]
        text = CONFIG.format(folder=folder, port=port, locations="\n    ".join(locations))
        self._file.write_text(text)
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        process = subprocess.Popen([NGINX, "-c", str(self._file)])
        self._undo.callback(process.wait)
        self._undo.callback(process.terminate)
        # It writes the file when it listens.
        while not (self._file.parent / "pid").exists():
            assert process.poll() is None, self._log.read_text()
            pause()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()


def _locations(ingress: Manifest, backends: Mapping[str, str], changed: Mapping[str, str]) -> list[str]:
    found = ingress["metadata"]["annotations"]
    given = {name.removeprefix(PREFIX): text for name, text in found.items() if name.startswith(PREFIX)}
    made = PASSES[given.pop("backend-protocol")]
    own = " ".join(DIRECTIVES[name].format(text) for name, text in {**given, **changed}.items())
    (rule,) = ingress["spec"]["rules"]
    return [
        f"location {'=' if path['pathType'] == 'Exact' else '^~'} {path['path']} "
        f"{{ {own} {made.format(backends[path['backend']['service']['port']['name']])} }}"
        for path in rule["http"]["paths"]
    ]
