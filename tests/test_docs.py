"""The documentation against the code: links, settings, commands, and examples of alerts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import typer

from deploy.cli import app
from flink_jobs.settings import Settings, load
from flink_jobs.settings_reader import keys_of

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "triton_repo").rglob("*.md")]
)
SECTIONS = sorted({path.partition(".")[0] for path in keys_of(Settings)})
NAMED_SETTING = re.compile(rf"({'|'.join(SECTIONS)})\.([a-z_]+)(?: = .*)?")
# `state.md` and the like are files.
SUFFIXES = ("json", "jsonl", "log", "md", "py", "toml")

pages = pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])


def _blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of each fenced block."""
    for found in re.finditer(
        r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        yield found[1], found[2]


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pages
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{target} does not exist"
        if anchor and linked.suffix == ".md":
            assert anchor in _anchors(linked), f"{target}: no such heading"


@pages
def test_named_settings_exist(page: Path) -> None:
    known = keys_of(Settings)
    for code in re.findall(r"`([^`\n]+)`", _prose(page)):
        found = NAMED_SETTING.fullmatch(code)
        if found and found[2] not in SUFFIXES:
            assert f"{found[1]}.{found[2]}" in known, f"no setting {code}"


@pages
def test_settings_files_in_the_text_are_valid(page: Path, tmp_path: Path) -> None:
    for language, text in _blocks(page):
        if language == "toml":
            path = tmp_path / "eddy.toml"
            path.write_text(text, "utf-8")
            load(path, {}, [])


@pages
def test_commands_exist_with_their_options(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for language, text in _blocks(page):
        if language:
            continue
        for line in text.splitlines():
            words = _words(line)
            if words[:1] == ["make"]:
                assert {w for w in words[1:] if "=" not in w} <= targets, line
            elif words[:1] == ["eddy"]:
                _check_command(words[1:], line)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # the first line of a script in quotes
        return []


def _check_command(words: list[str], line: str) -> None:
    command = typer.main.get_command(app)
    # Not isinstance: typer has a copy of click of its own in some versions.
    while words and (commands := getattr(command, "commands", None)) and words[0][0] != "-":
        assert words[0] in commands, f"no command {words[0]}: {line}"
        command, words = commands[words[0]], words[1:]
    known = {option for one in command.params for option in one.opts} | {"--help"}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"no option {word}: {line}"


def test_examples_of_alerts_are_as_documented() -> None:
    schema = json.loads((ROOT / "flink_jobs/contract/alert.schema.json").read_text("utf-8"))
    examples = [
        json.loads(text)
        for language, text in _blocks(ROOT / "README.md")
        if language == "json" and '"specversion"' in text
    ]
    assert len(examples) == 2
    for example in examples:
        jsonschema.validate(example, schema)


def test_decisions_are_listed_and_numbered() -> None:
    folder = ROOT / "docs" / "decisions"
    found = sorted(folder.glob("[0-9]*.md"))
    listed = (folder / "README.md").read_text("utf-8")
    for number, page in enumerate(found, 1):
        assert page.name.startswith(f"{number:04d}-"), page.name
        assert page.read_text("utf-8").startswith(f"# {number}. "), page.name
        assert f"({page.name})" in listed, page.name
    assert "docs/decisions" in (ROOT / "README.md").read_text("utf-8")


def test_the_headline_figures_are_those_of_the_benchmarks() -> None:
    told = {
        name: json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text("utf-8"))
        for name in ("nab", "handbook", "sequences", "tpp", "throughput", "latency")
    }
    eddy, through = (told["latency"]["systems"][name] for name in ("eddy", "pass_through"))
    spans = ("p50_ms_at_least_once", "p99_ms_at_least_once")
    expected = [
        f"{told['nab']['standard']:.2f}; at the shipped threshold "
        f"{told['nab']['at_shipped_threshold']['standard']:.2f}",
        f"{told['handbook']['late_labels']['average_precision']:.3f}",
        f"{told['handbook']['unlabelled']['average_precision']:.3f} (goal 0.30, missed)",
        f"{told['sequences']['mean_at_0.5']:.4f}",
        f"{told['tpp']['hawkes2']['test_nll']:.4f}",
        f"{told['throughput']['systems']['eddy']['payments_per_s']:,.0f} (goal 60,000, missed)",
        ", ".join(str(int(eddy[name] + 0.5)) for name in spans),
    ]
    beside = [
        "75.89",
        "0.658",
        f"{told['handbook']['ceilings']['traces']['average_precision']:.3f}",
        f"{told['sequences']['3S']['mean_at_0.5']:.4f}",
        "0.0540",
        f"{told['throughput']['systems']['naive']['payments_per_s']:.0f}",
        ", ".join(str(int(through[name] + 0.5)) for name in spans),
    ]
    section = (ROOT / "README.md").read_text("utf-8").partition("## How good it is")[2]
    rows = [
        line.split(" | ") for line in section.splitlines() if "[json]" in line or "same |" in line
    ]
    assert [row[1] for row in rows] == expected
    assert [row[2].endswith(figure) for row, figure in zip(rows, beside, strict=True)] == [True] * 7
