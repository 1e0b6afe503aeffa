"""What the site adds to the pages that are written: those that are made from the code."""

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from skillgraft.manual.pages import GENERATED


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in GENERATED.items():
        files.append(File.generated(config, f"{name}.md", content=page()))
    return files
