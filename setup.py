"""What pyproject.toml cannot say: the links of the page on a package index.

The links of README.md lead to files of the repository, which an index does not have. There they
lead to ADDRESS, or are plain text as long as that is empty. Everything else is in pyproject.toml.
"""

import re
from pathlib import Path

ADDRESS = ""  # of the repository's files on the web, up to and without the last slash

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\n)*)\]\((?![a-z]+:)([^)\s]+)\)")


def for_an_index(text: str, address: str) -> str:
    """The readme with each relative link made absolute; without an address, only its words stay."""

    def link(found: re.Match) -> str:
        picture, words, target = found.groups()
        if address:
            return f"{picture}[{words}]({address}/{target})"
        return f"*{words}*" if picture else words

    return LINK.sub(link, text)


if __name__ == "__main__":
    from setuptools import setup

    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(
        long_description=for_an_index(readme, ADDRESS),
        long_description_content_type="text/markdown",
        project_urls={"Source": ADDRESS} if ADDRESS else {},
    )
