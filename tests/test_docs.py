"""The documentation is true: its code runs, its commands parse, its links lead somewhere, its map is the tree."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click
import layouts_m2
import pytest
from helpers import ROOT
from verbs import run

import sparsify
from sparsify.cli.main import main
from sparsify.converters import m2_bert
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.wordpiece import TextTokenizer

PAGES = sorted(
    path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples" / "README.md")
    if path.name != "CHANGELOG.md"
)  # fmt: skip
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))  # but for a family of one's own, which has tests of its own
DEMO = "demo/hyenadna-chr20-8k"
IN_PLACE_OF = {"YOU/MODEL-sparse": "out/sparse", "ORG/MODEL": DEMO}  # of repositories, what is here
FENCE = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)
NOT_RUN = 2  # blocks of Python that say why they are not run, at most
PROGRAMS = {"cd", "sparsify", "hf-sparsify", "make", "pip", "git", "python", "bash"}
OTHERS = {"--index-url", "--help"}  # options of other programs that the pages name


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.  mark: the HTML comment on the line before it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    text = page.read_text()
    return tuple(
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["text"], found["mark"] or "")
        for found in FENCE.finditer(text)
        if not found["language"].startswith("{")  # a directive of Sphinx
    )


def every(*languages: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language in languages]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of every command of a shell block, without comments and assignments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the root of the repository is to a reader, with a converted model in it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "demo").symlink_to(ROOT / "demo")
    sparsify.convert(folder / DEMO, folder / "out" / "sparse", taps=256)
    return folder


# --- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.plain_empty
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name_of)
def test_python_runs(page, place, monkeypatch):
    """All blocks of a page, one after the other, in one namespace."""
    monkeypatch.chdir(place)
    names = {"__name__": "__main__"}
    for block in blocks(page):
        if block.language == "python" and not block.mark.startswith("not run: "):
            source = block.text
            for name, here in IN_PLACE_OF.items():
                source = source.replace(f'"{name}"', f'"{here}"')
            exec(compile("\n" * block.line + source, str(page), "exec"), names)


def test_few_blocks_are_not_run():
    left_out = [str(block) for block in every("python") if block.mark.startswith("not run: ")]
    assert len(left_out) <= NOT_RUN, left_out


def test_every_block_says_its_language():
    nameless = [str(b) for page in PAGES for b in blocks(page) if not b.language]
    assert not nameless
    assert {b.language for page in PAGES for b in blocks(page)} <= {"python", "sh", "text", "json"}
    for block in every("json"):
        json.loads("{" + block.text + "}" if block.text.startswith('"') else block.text)


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A tiny masked language model, and SST-2 in its words."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "vocab.txt").write_text("\n".join(layouts_m2.WORDS) + "\n")
    sizes = M2BertConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, vocab_size=len(layouts_m2.WORDS),
        max_position_embeddings=24, hyena_filter_order=8,
    )  # fmt: skip
    for split, count in ("train", 64), ("dev", 16):
        rows = [{"sentence": f"the film was {('bad', 'good')[i % 2]}", "label": i % 2} for i in range(count)]
        (folder / f"sst2.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return m2_bert.save(M2Bert(sizes), folder / "model", TextTokenizer(folder)), folder


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(script, place, request):
    arguments = request.getfixturevalue("glue") if script.stem == "glue_m2_bert" else ()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=place, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_example_is_listed():
    listed = re.findall(r"^\| `(\w+\.py)", (ROOT / "examples" / "README.md").read_text(), re.M)
    assert sorted(listed) == [script.name for script in EXAMPLES]


# --- commands ------------------------------------------------------------------------------------------------------


def parse(words: list[str]) -> None:
    """Refuse a command line that click does not take; nothing is run."""
    command, parent, rest = main, None, words
    while isinstance(command, click.Group):
        context = command.make_context(words[0], list(rest), parent=parent)
        _, found, rest = command.resolve_command(context, context._protected_args + context.args)
        command, parent = found, context
    command.make_context(command.name, list(rest), parent=parent)


@pytest.mark.parametrize("block", every("sh"), ids=str)
def test_commands_parse(block):
    for words in commands(block):
        assert words[0] in PROGRAMS, f"{words[0]} is no program that the pages may name"
        if words[0].endswith("sparsify"):
            parse(words[1:])
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), words
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


@pytest.mark.parametrize("line", ["convert SRC", "bench --nonsense", "eval ppl M", "convert A B --split 64", "vanish"])
def test_a_wrong_command_is_seen(line):
    with pytest.raises(click.UsageError):
        parse(line.split())


def options() -> Iterator[click.Option]:
    """Every option of every verb."""
    waiting: list[click.Command] = [main]
    while waiting:
        command = waiting.pop()
        yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))
        waiting += command.commands.values() if isinstance(command, click.Group) else []


def test_every_option_says_what_it_does():
    """In words before the default, if it says one."""
    assert [option.name for option in options() if len((option.help or "").partition("[default")[0]) < 8] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_text_exist(page):
    text = FENCE.sub("", page.read_text())
    named = {
        option for code in re.findall(r"`([^`\n]+)`", text) for option in re.findall(r"(?<!\S)--[a-z][a-z-]+", code)
    }
    assert named <= {name for option in options() for name in option.opts} | OTHERS


def shape(line: str) -> str:
    """A line of output without what differs from machine to machine: numbers, and the room that they take."""
    return " ".join(re.sub(r"[-+−]?\d[\d,.]*(e[-+]\d+)?", "#", line).split())


@pytest.mark.parametrize("block", [b for b in every("sh") if b.mark == "run"], ids=str)
def test_commands_run(block, place, monkeypatch):
    """Those that are cheap on the demo model; the output that a page shows is what they print, but for the numbers."""
    monkeypatch.chdir(place)
    printed = ""
    for words in commands(block):
        done = run(*words[1:])
        assert done.exit_code == 0, done.output
        printed += done.stdout
    following = next((b for b in blocks(block.page) if b.line > block.line), None)
    if following is not None and following.mark == "output":
        lines = {shape(line) for line in printed.splitlines()}
        assert [line for line in following.text.splitlines() if shape(line) not in lines] == []


# --- figures, links, the map ---------------------------------------------------------------------------------------


def results(name: str) -> dict:
    return json.loads((ROOT / "evals" / "results" / f"{name}.json").read_text())


def row(text: str, start: str) -> str:
    """The line of a table that begins with these cells."""
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def test_figures_of_the_readme_are_those_that_were_measured():
    text = (ROOT / "README.md").read_text()
    tiny, demo = results("front-tiny-1k")["pairs"], results("front-chr20-8k")["pairs"]
    eighth = next(p for p in tiny if p["kind"] == "low-pass" and p["share"] == 0.125)
    smallest = next(p for p in demo if p["kind"] == "taps" and p["share"] == 0.015625)
    for start, found in (
        ("HyenaDNA tiny-1k", eighth["chosen"]),
        ("the same cost by a low-pass", eighth["uniform"]),
        ("demo model, 8,192", smallest["chosen"]),
    ):
        increase, stderr = re.search(r"([+-][\d.]+) % ± ([\d.]+) %", row(text, start)).groups()
        assert float(increase) == round(100 * found["increase"], len(increase.split(".")[1]))
        assert float(stderr) == round(100 * found["stderr"], len(stderr.split(".")[1]))
    whole = results("cpu-xeon-demo-budget")
    kept, evaluation, line = whole["filters"], whole["evaluation"], row(text, "demo model within 0.1 %")
    assert " and ".join(f["plan"].split()[1] for f in kept) in line and evaluation["linears"] == "bfloat16"
    found = [evaluation["speed"]["columns"][-1]["speedup"], *(gain["factor"] for gain in evaluation["speed"]["gains"])]
    assert [float(factor) for factor in re.findall(r"([\d.]+)x", line)] == [round(factor, 2) for factor in found]
    lost = 100 * (evaluation["perplexity_ratio"] - 1), 100 * evaluation["perplexity_ratio_stderr"]
    assert re.search(r"([+-][\d.]+) % ± ([\d.]+) %", line).groups() == (f"{lost[0]:+.3f}", f"{lost[1]:.3f}")
    shapes = {tuple(s["shape"]): {w["name"]: w for w in s["ways"]} for s in results("cpu-zen4-convolutions")["shapes"]}
    for sizes in (1, 256, 32768), (1, 64, 1048576):
        ways = shapes[sizes]
        label = " x ".join(f"{n:,}" for n in sizes)
        cells = text.splitlines()
        at = next(i for i, line in enumerate(cells) if label in line)
        published, best = map(float, re.findall(r"([\d.]+)x the", cells[at]))
        further = float(re.search(r"further ([\d.]+)x", cells[at + 1])[1])
        exact, split = ways["exact"]["faster_than"], ways["split 64 + 1/16"]["faster_than"]
        assert published == pytest.approx(exact["reference code"]["median"], rel=0.03)
        assert best == pytest.approx(exact["best torch.fft"]["median"], rel=0.03)
        assert further == pytest.approx(split["exact"]["median"], rel=0.05)


def anchors(page: Path) -> set[str]:
    """The places of a page that links may lead to, as GitHub and Sphinx name them."""
    text = FENCE.sub("", page.read_text())
    if found := re.search(r"```\{include\} (\S+)", page.read_text()):
        return anchors(page.parent / found[1])
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def mapped() -> list[str]:
    """The folders that the map of the architecture page names, by their paths."""
    block = next(b for b in blocks(ROOT / "docs" / "architecture.md") if b.language == "text")
    stack, found = [], []
    for line in block.text.splitlines():
        name = line.split()[0].rstrip("/")
        depth = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:depth], name]
        found.append("/".join(stack))
    return found


def test_the_map_is_the_tree():
    """Every folder that git knows stands in the map, but for those below docs, demo and tests."""
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository here, or no git")
    folders = {str(parent) for line in done.stdout.splitlines() for parent in Path(line).parents} - {"."}
    drawn = {f for f in folders if not f.startswith(("docs/", "demo/", "tests/", "."))}
    assert set(mapped()) == drawn


def test_places_that_the_pages_name_exist():
    """Paths of all pages, and the names in them."""
    for page in (*PAGES, ROOT / "cuda" / "README.md"):
        text = FENCE.sub("", page.read_text())
        for path in re.findall(r"`((?:sparsify|converters|evals|cuda|tests|tools)/[\w./]*)`", text):
            assert (ROOT / path).exists(), (page, path)
        for constant, path in re.findall(r"`(\w+)` (?:\([^)]*\) )?in `([\w./]+\.py)`", text):
            assert re.search(rf"^(?:class |def |){constant}\b", (ROOT / path).read_text(), re.M), (constant, path)


# --- the site ------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_from_what_is_here():
    """The committed pictures are what docs/draw.py draws; coordinates may differ by rounding."""
    spec = spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    draw = module_from_spec(spec)
    spec.loader.exec_module(draw)
    number = re.compile(r"-?\d+\.?\d*")
    drawn = draw.drawn()
    assert {path.name for path in draw.PICTURES.iterdir()} == set(drawn)
    for name, content in drawn.items():
        kept = (draw.PICTURES / name).read_text()
        assert number.sub("#", kept) == number.sub("#", content), f"{name} is old; run python docs/draw.py"
        pairs = zip(number.findall(kept), number.findall(content), strict=True)
        assert max(abs(float(a) - float(b)) for a, b in pairs) < 1.0, name


def test_every_page_is_on_the_site():
    """Sphinx says so, too, where it is installed; here nobody needs it."""
    text = (ROOT / "docs" / "index.md").read_text()
    listed = {line.strip() for body in re.findall(r"```\{toctree\}(.*?)```", text, re.S) for line in body.splitlines()}
    pages = {str(p.relative_to(ROOT / "docs").with_suffix("")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index"} == {name for name in listed if name and not name.startswith(":")}


def test_exported_functions_are_documented():
    """Every public name stands in the API reference, and says what each of its parameters is and what it returns."""
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    for name in sparsify.__all__:
        assert f":: sparsify.{name}\n" in text, name
        public = getattr(sparsify, name)
        if name in ("ConvSite", "Filter", "LongConv"):
            continue
        for parameter in inspect.signature(public).parameters:
            assert re.search(rf"^ {{8}}{parameter}: \S", public.__doc__, re.M), f"{name}: {parameter}"
        assert "\n    Returns:\n" in public.__doc__ and "\n    Raises:\n" in public.__doc__, name


def test_citation_has_the_version():
    assert f"\nversion: {sparsify.__version__}\n" in (ROOT / "CITATION.cff").read_text()
