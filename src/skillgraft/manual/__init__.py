"""The documentation as the package carries it: pages as Markdown, some made from the code that they describe."""
