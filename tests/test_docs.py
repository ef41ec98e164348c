"""What the documentation shows is true: its code runs and prints what it shows, its commands exist."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
CODE_PAGES = [*PAGES, "README.md", "examples/recipes/README.md"]
FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"python", "bash", "yaml", "text"}
NUMBER = re.compile(r"(?<![\w.])-?\d+\.\d+")
NEAR = 0.011  # of numbers that are printed with two digits: what precision and back-end may change
# Commands that take seconds are run; others are parsed and their files read.
RUNNABLE = {"score", "doctor", "calibrate", "export"}
TOO_LONG = {"--measure", "int8"}
# Files that commands on the pages name, and only the reader has.
THE_READERS = {"answers.jsonl", "my_training.py"}
# What the pages' Python needs beside the core.
needs_encoder = pytest.mark.skipif(not is_packaged(DEFAULT_ENCODER), reason="needs the extra minilm")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int  # of its first line of content
    language: str
    content: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@functools.cache
def blocks_of(page: str) -> tuple[Block, ...]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language = match[2].split(maxsplit=1)[0] if match[2].strip() else ""
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Block(page, line, language, textwrap.dedent(match[3])))
    return tuple(found)


ALL = [block for page in CODE_PAGES for block in blocks_of(page)]
PYTHON_PAGES = [page for page in CODE_PAGES if any(block.language == "python" for block in blocks_of(page))]
COMMANDS = [
    (block, line)
    for block in ALL
    if block.language == "bash"
    for line in block.content.replace("\\\n", " ").splitlines()
    if line.strip()
]


def command_name(case: object) -> str:
    return str(case) if isinstance(case, Block) else shlex.join(shlex.split(str(case), comments=True)[:3])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples in it, as a checkout has them, and a reader's texts."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    texts = [f"The heart pumps blood {number} times." for number in range(16)]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --------------------------------------------------------------------------- Python


def same_but_for_rounding(printed: str, shown: str) -> bool:
    """Whether two texts are the same, where numbers with a point may differ in the second digit behind it."""
    if NUMBER.sub("#", printed).split() != NUMBER.sub("#", shown).split():
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
    return all(
        abs(float(a) - float(b)) < max(NEAR, 1.1 * 10.0 ** -len(b.partition(".")[2])) for a, b in pairs
    )


def pieces(page: str) -> Iterator[tuple[Block, Block | None]]:
    """The page's blocks with, of Python, the text that follows it and shows what it prints."""
    blocks = blocks_of(page)
    for index, block in enumerate(blocks):
        following = blocks[index + 1] if index + 1 < len(blocks) else None
        if block.language in ("python", "bash"):
            shows = following if following is not None and following.language == "text" else None
            yield block, shows


@needs_encoder
@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom_and_prints_what_it_shows(page: str, desk: Path) -> None:
    for package in {"trl", "datasets"} & imported_by(page):
        pytest.importorskip(package)
    names: dict[str, object] = {"__name__": "page"}
    for block, shows in pieces(page):
        if block.language == "bash":
            run_cheap_commands(block)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Empty lines before it: an error names the page's own line.
            exec(compile("\n" * (block.line - 1) + block.content, page, "exec", dont_inherit=True), names)
        if shows is not None:
            # A trainer prints its log; what the block shows comes last.
            tail = printed.getvalue().rstrip().splitlines()[-len(shows.content.rstrip().splitlines()) :]
            assert same_but_for_rounding("\n".join(tail), shows.content.rstrip()), (
                f"{shows} shows\n{shows.content}but {block} printed\n{printed.getvalue()}"
            )


def imported_by(page: str) -> set[str]:
    source = "\n".join(block.content for block in blocks_of(page) if block.language == "python")
    return set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))


@pytest.mark.parametrize(
    ("printed", "shown", "alike"),
    [
        ("[0.93, 1]", "[0.92, 1]", True),
        ("0.93", "0.95", False),
        ("[0.93, 1]", "[0.93, 2]", False),
        ("0.93 a", "0.93 b", False),
        ("1.0 2.0", "1.0", False),
        ("0.5", "0.6", True),
        ("0.5", "0.7", False),
        ("-0.50", "0.50", False),
    ],
)
def test_numbers_are_alike_within_rounding_and_the_rest_to_the_letter(
    printed: str, shown: str, alike: bool
) -> None:
    assert same_but_for_rounding(printed, shown) is alike


# --------------------------------------------------------------------------- commands


def run_cheap_commands(block: Block) -> None:
    """Run what later blocks of the page read, and what takes seconds."""
    from fastreward.cli import app

    for line in block.content.splitlines():
        words = shlex.split(line, comments=True)
        runs = words[:1] == ["fastreward"] and words[1] in RUNNABLE
        if runs and not {*TOO_LONG, *THE_READERS} & set(words) and can_run(words[1]):
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, f"{block}: {line}\n{result.output}"


def can_run(command: str) -> bool:
    """Whether what a command needs is here, as it is after `make`."""
    if command == "calibrate":
        from fastreward.encoders.cpus import int8_runs_here

        return importlib.util.find_spec("openvino") is not None and int8_runs_here()
    return command != "export" or importlib.util.find_spec("onnxruntime") is not None


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=command_name)
def test_a_command_exists_with_its_options_and_its_files(block: Block, line: str, desk: Path) -> None:
    words = shlex.split(line, comments=True)
    check_command([Path(words[0]).name, *words[1:]])


def check_command(words: list[str]) -> None:
    """Object to what a command of the pages names and the project does not have."""
    program, *rest = words
    match program:
        case "fastreward":
            check_own_command(rest)
        case "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert set(rest) <= set(targets)
        case "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
            known = set(extras["project"]["optional-dependencies"])
            assert rest[0] == "install"
            for group in re.findall(r"\[(.*?)\]", " ".join(rest)):
                assert set(group.split(",")) <= known
        case "python" | "torchrun" | "accelerate":
            check_script(rest)
        case _:
            pytest.fail(f"nothing is known of {program}: teach check_command")


def check_script(words: list[str]) -> None:
    (script,) = [word for word in words if word.endswith(".py")]
    if script in THE_READERS:
        return
    source = (ROOT / script).read_text(encoding="utf-8")
    options = [word.partition("=")[0] for word in words[words.index(script) :] if word.startswith("--")]
    assert [option for option in options if f'"{option}"' not in source] == []


def check_own_command(words: list[str]) -> None:
    """Parse a command as the command line does, and read the configuration that it names."""
    import typer

    from fastreward.cli import app

    command, context, names, rest = typer.main.get_command(app), None, ["fastreward"], list(words)
    while hasattr(command, "get_command"):  # a group, none of which has arguments of its own
        context = command.context_class(command, info_name=names[-1], parent=context)
        name, *rest = rest
        names.append(name)
        command = command.get_command(context, name)
        assert command is not None, f"there is no command {name}"
    # Parsing alone: an unknown option, a missing one, or a value of another type raises.
    parsed = command.make_context(names[-1], rest, parent=context).params
    if names[1] == "train":
        from fastreward.integrations.pipeline.stages import read_stage

        assert read_stage(names[2], parsed["config"], parsed["overrides"] or []).model
    if names[1] == "profile":
        inner = list(parsed["command"])
        check_command([Path(inner[0]).name, *inner[1:]])


@pytest.mark.parametrize(
    "line",
    [
        "fastreward scores in.jsonl --completion a --reference b",
        "fastreward score in.jsonl --completion a --references b",
        "fastreward score in.jsonl --completion a",
        "fastreward profile -- python examples/no_such_file.py",
        "fastreward train grpo --config examples/recipes/small-cpu/grpo.yaml loop.max_step=20",
        "fastreward train rl --config examples/recipes/small-cpu/grpo.yaml",
        "fastreward export encoder --to folder --precision fp64",
        "make tests",
        'pip install -e ".[mini]"',
        "python benchmarks/bench_scorer.py --no-such-option",
        "curl somewhere",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, desk: Path) -> None:
    import click

    try:
        from typer._click.exceptions import ClickException  # newer releases of typer bring their own click
    except ImportError:
        ClickException = click.ClickException  # noqa: N806  # a class
    from fastreward.errors import InputError

    wrong = (AssertionError, ClickException, click.ClickException, InputError, OSError, pytest.fail.Exception)
    with pytest.raises(wrong):
        check_command(shlex.split(line))


# --------------------------------------------------------------------------- other blocks


def test_every_block_says_what_language_it_is_in() -> None:
    assert len(ALL) > 40
    assert [f"{block}: {block.language!r}" for block in ALL if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("block", [block for block in ALL if block.language == "yaml"], ids=str)
def test_a_configuration_on_a_page_is_one_that_a_stage_reads(block: Block, desk: Path) -> None:
    from fastreward.integrations.pipeline.rewards import make_reward
    from fastreward.integrations.pipeline.stages import read_stage

    Path("stage.yaml").write_text(block.content, encoding="utf-8")
    read_stage("grpo", Path("stage.yaml"), [])
    values = yaml.safe_load(block.content)
    make_reward(values["rewards"], gates=values.get("gates"))


# --------------------------------------------------------------------------- the reference


def referenced() -> set[str]:
    """The names that the reference writes out from docstrings."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return {
        name
        for page in pages
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("name", sorted(referenced()))
def test_a_name_of_the_reference_can_be_imported_and_says_what_it_is(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert (getattr(importlib.import_module(module), attribute).__doc__ or "").strip()


@pytest.mark.parametrize(
    "module",
    [
        "fastreward",
        "fastreward.rewards",
        "fastreward.profiling",
        "fastreward.integrations.exams",
        "fastreward.integrations.grpo",
        "fastreward.integrations.pipeline",
    ],
)
def test_everything_public_is_in_the_reference(module: str) -> None:
    known = {name.rpartition(".")[2] for name in referenced()}
    public = importlib.import_module(module)
    things = [
        name
        for name in public.__all__
        if inspect.isroutine(thing := getattr(public, name)) or inspect.isclass(thing)
    ]
    assert things
    assert [name for name in things if name not in known] == []


# --------------------------------------------------------------------------- the site


def test_every_page_is_in_the_navigation_and_the_other_way_round() -> None:
    # Names of Python objects apart, mkdocs.yml is plain YAML.
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for value in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from leaves(value)

    assert sorted(f"docs/{page}" for page in leaves(config["nav"])) == PAGES
    assert config["strict"] is True
    assert config["theme"]["font"] is False


def built_site(folder: Path) -> Path:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def the_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def test_the_numbers_are_those_of_the_readme_and_all_runs_are_listed() -> None:
    hooks = the_hooks()
    page = hooks.on_page_markdown((ROOT / "docs" / "numbers.md").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = readme.partition("<!-- numbers:begin -->")[2].partition("<!-- numbers:end -->")[0].strip()
    assert measured in page
    runs = len(list((ROOT / "benchmarks" / "results").glob("*/*.json")))
    assert len(re.findall(r"^\| \d{4}-\d\d-\d\d \|", page, re.MULTILINE)) == runs


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", '<script src="https://example.org/a.js"></script>'),
        ("a.html", '<link rel="stylesheet" href="//example.org/a.css">'),
        ("a.html", '<img src="http://example.org/a.png">'),
        ("a.css", "@font-face { src: url(https://example.org/a.woff2) }"),
    ],
)
def test_a_site_that_loads_something_from_elsewhere_is_refused(
    name: str, content: str, tmp_path: Path
) -> None:
    hooks = the_hooks()
    (tmp_path / "b.html").write_text(
        '<a href="https://example.org">out</a><img src="b.png">', encoding="utf-8"
    )
    hooks.on_post_build({"site_dir": str(tmp_path)})
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(hooks.LoadsFromElsewhereError, match=r"example\.org"):
        hooks.on_post_build({"site_dir": str(tmp_path)})


def test_the_site_builds_without_a_warning_and_finds_words_without_a_server(tmp_path: Path) -> None:
    site = built_site(tmp_path / "site")
    scorer = (site / "reference" / "scorer.html").read_text(encoding="utf-8")
    assert "Score each completion by its cosine with its reference" in scorer
    assert "batch_invariant" in scorer
    assert "<!-- runs -->" not in (site / "numbers.html").read_text(encoding="utf-8")
    if shutil.which("chromium") is None:
        pytest.skip("the search needs Chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    address = f"file://{site}/index.html?q=batch_invariant"
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = subprocess.run(
        ["chromium", *options, profile, address], capture_output=True, text=True, timeout=60
    ).stdout
    assert re.search(r'md-search-result__meta">\s*\d+ matching documents', shown)
