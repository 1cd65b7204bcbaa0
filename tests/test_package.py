"""The package as users install it, and that the project's pages lead to what they name."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob(".github/*.md"),
    *(page for folder in ("musicssl", "data_pipelines", "launch", "tests") for page in
      (ROOT / folder).rglob("*.md")),
]  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package in a folder of its own, without what it requires. Building it takes some 5 s."""
    folder = tmp_path_factory.mktemp("package")
    for name in ("musicssl", "configs", "data_pipelines"):  # setuptools writes beside its sources
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    pip += ["--disable-pip-version-check", f"--target={folder / 'there'}", str(folder)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    return folder / "there"


def test_an_installed_command_runs_from_another_folder(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, str(installed / "bin/musicssl"), "main", "--config=music2vec:demo", "-h"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "python -m musicssl.main" in done.stdout and ":demo" in done.stdout
    refused = subprocess.run(
        [sys.executable, "-m", "musicssl", "train"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "there is no command train: use build, main, probe" in refused.stderr


def test_the_package_holds_every_file_of_its_folders(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "musicssl", "configs", "data_pipelines"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    if not tracked:
        pytest.skip("not a clone")
    missing = [name for name in tracked if not (installed / name).exists()]
    assert missing == []


def test_the_extra_of_the_tests_is_the_file_s():
    lines = (ROOT / "requirements-test.txt").read_text().splitlines()
    named = [line.partition("#")[0].strip() for line in lines]
    assert PROJECT["optional-dependencies"]["test"] == [
        name for name in named if name and not name.startswith("-r")
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
