"""Code blocks of the README run as they are, in a checkout's root, and the layer diagram shows the real imports.

Two blocks do not run: the commands for which people label are parsed, and the one on TRL's value head needs TRL.
"""

import contextlib
import io
import itertools
import re
import shlex
from pathlib import Path

import grimp
import pytest

README = Path(__file__).parents[1] / "README.md"
# Commands that a test cannot run, and why.
NOT_RUN = {
    "make": "make test runs this test; make demo is tests/cli and experiment 009",
    "pip": "would change the environment of the tests",
    "tensorboard": "serves until it is stopped",
    "git": "would clone this repository",
}


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def commands(block: str) -> list[list[str]]:
    """The command lines of a block, without comments and line continuations."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder that looks like a checkout's root; what the blocks write stays in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("jaxrl_lm", "benchmarks", "experiments"):
        (folder / name).symlink_to(README.parent / name)
    return folder


@pytest.mark.usefixtures("pictures_drawn_once")
def test_every_block_runs_and_prints(checkout, monkeypatch):
    from jaxrl_lm.cli.main import run

    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))
    for language, block in re.findall(r"^```(bash|python)\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            run_python(block)
            continue
        for words in commands(block):
            if words[0] == "jaxrl-lm":
                assert run(words[1:]) == 0, " ".join(words)
            elif words[0] == "python":
                assert Path(words[1]).is_file(), " ".join(words)
            else:
                assert words[0] in NOT_RUN, " ".join(words)


def test_the_commands_that_wait_for_people_are_understood():
    from jaxrl_lm.cli.main import parse

    lines = [words for block in blocks("") for words in commands(block) if words[0] == "jaxrl-lm"]
    assert len(lines) == 16
    for words in lines:
        # "..." is for options that other blocks show.
        rest = ["--model=folder", "--prompts=file.txt", "--out=runs/x"] if "..." in words else []
        rest += ["--reward=words"] if "..." in words and "ppo" in words else []
        parse([word for word in words[1:] if word != "..."] + rest)


def run_python(block: str) -> None:
    """Run a block, which must print something; one that begins with `# FILE.py` is that file."""
    named = re.match(r"# (\w+\.py)\b", block)
    if named:
        Path(named[1]).write_text(block)
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README", "exec"), {"__name__": "__main__"})
    assert printed.getvalue(), block


def test_the_layer_diagram_shows_the_imports():
    """Each arrow is an import, and each import between packages follows arrows downwards."""
    (diagram,) = blocks("mermaid")
    arrows = set()
    for line in diagram.splitlines():
        ends = [re.findall(r"\b([a-z_]+)\b(?:\[|\s|$)", part) for part in re.sub(r"\[.*?\]", "", line).split("-->")]
        for sources, targets in itertools.pairwise(ends):
            arrows |= {(source, target) for source in sources for target in targets}
    packages = {name for arrow in arrows for name in arrow}
    graph = grimp.build_graph("jaxrl_lm")
    real = {
        (importer, imported)
        for importer in packages
        for imported in packages - {importer}
        if graph.direct_import_exists(
            importer=f"jaxrl_lm.{importer}", imported=f"jaxrl_lm.{imported}", as_packages=True
        )
    }
    assert arrows <= real, f"arrows without an import: {sorted(arrows - real)}"
    reachable = set(arrows)
    for _ in packages:
        reachable |= {(a, d) for a, b in reachable for c, d in reachable if b == c}
    assert real <= reachable, f"imports that no path of arrows shows: {sorted(real - reachable)}"
