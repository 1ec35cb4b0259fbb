"""The code of a notebook alone, in the notebook's language."""

from __future__ import annotations

from typing import Any

from nbconvert.exporters import PythonExporter, ScriptExporter
from nbformat import NotebookNode

PLAIN = "text/plain"

_MEDIA_TYPES = {
    "bash": "text/x-sh",
    "c": "text/x-csrc",
    "c#": "text/x-csharp",
    "c++": "text/x-c++src",
    "clojure": "text/x-clojure",
    "f#": "text/x-fsharp",
    "go": "text/x-go",
    "haskell": "text/x-haskell",
    "java": "text/x-java",
    "julia": "text/x-julia",
    "kotlin": "text/x-kotlin",
    "lua": "text/x-lua",
    "octave": "text/x-octave",
    "ocaml": "text/x-ocaml",
    "perl": "text/x-perl",
    "python": PythonExporter.output_mimetype,
    "r": "text/x-r-source",
    "ruby": "text/x-ruby",
    "rust": "text/x-rust",
    "scala": "text/x-scala",
    "sql": "text/x-sql",
}


class CodeExporter(ScriptExporter):
    """Writes the code cells; what is written, and as what, the language's name alone decides.

    nbconvert's has the notebook name any exporter, or a function to import, and the media type.
    """

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **options: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Convert a notebook."""
        language = nb.metadata.get("language_info", {}).get("name", "").lower()
        nb.metadata["language_info"] = NotebookNode(name=language)
        content: tuple[Any, dict[str, Any]] = super().from_notebook_node(nb, resources, **options)  # type: ignore[no-untyped-call] # nbconvert's
        self.output_mimetype = _MEDIA_TYPES.get(language, PLAIN)
        return content

    def _get_language_exporter(self, lang_name: str) -> PythonExporter | None:
        # nbconvert's takes any that a package has installed for a language.
        return PythonExporter(config=self.config, parent=self) if lang_name == "python" else None
