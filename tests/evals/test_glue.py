"""GLUE: reading every kind of file, scoring two models on the same examples, and what is never said silently."""

import json
import re
import sys
import types

import numpy as np
import pytest
import torch

from sparsify.evals.glue.metrics import METRICS
from sparsify.evals.glue.scores import agreement, answers, average, figures, m2_bert_average, verdict
from sparsify.evals.glue.significance import mcnemar
from sparsify.evals.glue.tasks import TASKS, find_tasks, read_examples, splits_of

SST2 = [
    {"sentence": "a fine film", "label": 1},
    {"sentence": 'a "dull" one', "label": 0},
    {"sentence": "good", "label": 1},
]
ROWS = {  # as the hub has them: a row, and one that says the same in GLUE's own TSV
    "cola": ({"sentence": "Kim left.", "label": 1}, "gj04\t1\t\tKim left."),
    "sst2": ({"sentence": "dull", "label": 0}, "sentence\tlabel\ndull\t0"),
    "mrpc": ({"sentence1": "a", "sentence2": 'b"', "label": 1},
             'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\tb"'),
    "stsb": ({"sentence1": "a", "sentence2": "b", "label": 3.75},
             "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\ta\tb\t3.750"),
    "qqp": ({"question1": "a", "question2": "b", "label": 0},
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t6\t7\ta\tb\t0"),
    "mnli": ({"premise": "a", "hypothesis": "b", "label": 2},
             "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction"),
    "qnli": ({"question": "a", "sentence": "b", "label": 1},
             "index\tquestion\tsentence\tlabel\n0\ta\tb\tnot_entailment"),
    "rte": ({"sentence1": "a", "sentence2": "b", "label": 0},
            "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment"),
    "wnli": ({"sentence1": "a", "sentence2": "b", "label": 1},
             "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1"),
}  # fmt: skip


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_there_are_nine_tasks():
    assert list(ROWS) == list(TASKS) and [t.name for t in find_tasks("all")] == list(TASKS)
    assert [t.name for t in find_tasks("SST-2, cola,sst2")] == ["sst2", "cola"]
    with pytest.raises(ValueError, match=r"no task 'sst3'; did you mean sst2\? The tasks are cola, sst2"):
        find_tasks("cola,sst3")
    for nothing in ("", "cola,"):
        with pytest.raises(ValueError, match=r"no task ''; the tasks are cola"):
            find_tasks(nothing)


@pytest.mark.parametrize("name", ROWS)
def test_the_same_example_from_every_kind_of_file(name, tmp_path):
    task, (row, tsv) = TASKS[name], ROWS[name]
    split = task.dev[0]
    write_jsonl(tmp_path / "a" / f"{name}.{split}.jsonl", [row])
    (tmp_path / "b" / task.title).mkdir(parents=True)
    (tmp_path / "b" / task.title / f"{split}.tsv").write_text(tsv + "\n")
    for folder in ("a", "b"):
        found = read_examples(tmp_path / folder, task, split)
        assert found.texts == (row[task.fields[0]],) and found.labels.tolist() == [row["label"]]
        assert found.pairs == (None if len(task.fields) == 1 else (row[task.fields[1]],))


def test_parquet_as_the_hub_names_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "sst2").mkdir()
    path = tmp_path / "sst2" / "validation-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(SST2), path)
    for src in (tmp_path, path):
        assert read_examples(src, TASKS["sst2"]).texts == tuple(row["sentence"] for row in SST2)


@pytest.mark.parametrize(("module", "src"), [("pyarrow", "sst2.dev.parquet"), ("datasets", "nyu-mll/glue")])
def test_what_is_not_installed_is_named(module, src, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sst2.dev.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"pip install {module}"):
        read_examples(src, TASKS["sst2"])


def test_datasets_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(*names, split):
        asked.append((*names, split))
        return SST2

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert read_examples("nyu-mll/glue", TASKS["sst2"]).labels.tolist() == [1, 0, 1]
    assert asked == [("nyu-mll/glue", "sst2", "validation")]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"sentence": "a", "label": -1}] * 3, r"3 of 3 labels in .* are hidden \(-1\).*dev split"),
        ([{"sentence": "a"}], "1 of 1 labels .* hidden"),
        ([{"sentence": "a", "label": 2}], "example 1 of .* label 2, expected one of negative, positive, or 0 to 1"),
        ([{"sentence": "a", "label": "good"}], "label 'good'"),
        ([{"text": "a", "label": 1}], "has no text 'sentence', it has text, label; is it SST-2?"),
        ([], "empty"),
    ],
)
def test_rows_that_do_not_fit(rows, sentence, tmp_path):
    path = write_jsonl(tmp_path / "sst2.dev.jsonl", rows)
    with pytest.raises(ValueError, match=sentence):
        read_examples(path, TASKS["sst2"])


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no dev split of SST-2: no sst2.dev.jsonl, SST-2/dev.tsv"):
        read_examples(tmp_path, TASKS["sst2"])
    with pytest.raises(FileNotFoundError, match="neither file nor folder"):
        read_examples(tmp_path / "nowhere", TASKS["sst2"])
    (tmp_path / "sst2.dev.jsonl").write_text('{"sentence": "a", "label": 1}\n{"sent')
    with pytest.raises(ValueError, match=r"line 2 of .* is not JSON"):
        read_examples(tmp_path, TASKS["sst2"])
    (tmp_path / "sst2.txt").write_text("a")
    with pytest.raises(ValueError, match=r"no file of examples; pass one of .jsonl"):
        read_examples(tmp_path / "sst2.txt", TASKS["sst2"])


def test_real_files(test_data):
    """Sizes of GLUE's dev sets, and the share of their labels that everyone knows."""
    folder = test_data / "glue"
    for name, count, metric in (("sst2", 872, 0.509), ("cola", 1043, 0.691), ("rte", 277, 0.473), ("wnli", 71, 0.437)):
        found = read_examples(folder, TASKS[name])
        assert len(found) == count and found.labels.mean() == pytest.approx(metric, abs=1e-3)
    assert read_examples(folder, TASKS["sst2"]).spread(10).texts[0] == "it 's a charming and often affecting journey . "


# --- files as they are ---------------------------------------------------------------------------------------------

HEADERS = {  # of GLUE's own files, with | for tabs; the last is CoLA's, which has none
    "sst2": "sentence|label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score",
    "qqp": "id|qid1|qid2|question1|question2|is_duplicate",
    "mnli": "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
            "sentence1|sentence2|label1|label2|label3|label4|label5|gold_label",
    "qnli": "index|question|sentence|label",
    "rte": "index|sentence1|sentence2|label",
    "wnli": "index|sentence1|sentence2|label",
    "cola": "source|label|star|sentence",
}  # fmt: skip
TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}
LABELS = {"is_duplicate", "gold_label", "score", "Quality", "label"}
LONG = 'a "long" text ' * 12_000  # more than the 131,072 letters that a reader of CSV takes


class Official:
    """GLUE's own layout of a task."""

    def __init__(self, name):
        self.task, self.columns = TASKS[name], HEADERS[name].split("|")
        self.first = [] if name == "cola" else ["\t".join(self.columns)]
        (self.label,) = (i for i, column in enumerate(self.columns) if column in LABELS)
        self.texts = [i for i, column in enumerate(self.columns) if column in TEXTS]

    def row(self, i, **changed):
        """The fields of example i: all its texts, a label, and something in every other column."""
        fields = [f"x{i}"] * len(self.columns)
        for place in self.texts:
            fields[place] = f'text {i} of column "{place}"'
        fields[self.label] = str(self.task.classes[i % 2]) if self.task.title in ("MNLI", "QNLI", "RTE") else str(i % 2)
        for place, value in changed.items():
            fields[self.texts[-1] if place == "text" else self.label] = value
        return "\t".join(fields)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("name", TASKS)
def test_broken_rows_of_official_files_are_left_out_and_named(name, end, tmp_path):
    """Nothing else of a file changes, whatever is wrong with a row of it."""
    official = Official(name)
    n, columns = 30, len(official.columns)
    rows = [official.row(i) for i in range(n)]
    rows[3] = rows[3].rpartition("\t")[0]  # a field is missing
    rows[5] += "\tmore"
    rows[7] += "\t"  # as some editors leave it: harmless
    rows[9] = official.row(9, text='a "quoted\nbreak" of a line')
    rows[11] = official.row(11, text="a \r in\rside and \u2028 and \x85")
    rows[13] = official.row(13, text=LONG)
    rows[15] = official.row(15, label="")
    rows[17] = official.row(17, label="none of them")
    rows[19] = ""
    path = tmp_path / f"{official.task.dev[0]}.tsv"
    path.write_bytes(end.join([*official.first, *rows, ""]).replace("d\nb", f"d{end}b").encode())
    found = read_examples(path, official.task, official.task.dev[0])
    second = official.texts[-1]
    expected = {i: f'text {i} of column "{second}"' for i in range(n)} | {
        11: "a \r in\rside and \u2028 and \x85",
        13: LONG,
    }
    kept = [i for i in range(n) if i not in (3, 5, 9, 15, 17, 19)]
    assert (found.pairs or found.texts) == tuple(expected[i] for i in kept)
    assert found.labels.tolist() == [i % 2 for i in kept] and found.available == len(kept)
    assert found.left_out.count == 6  # the quoted line break makes two of one
    line = 1 + len(official.first)
    assert found.left_out.reasons[0] == f"line {line + 3} has {columns - 1} field{'s' * (columns > 2)}, not {columns}"
    assert found.left_out.reasons[1] == f"line {line + 5} has {columns + 1} fields, not {columns}"
    assert found.left_out.reasons[2].startswith(f"line {line + 9} has ")
    assert f"{tmp_path}" not in found.left_out.sentence("row", path.name)


def test_a_text_that_is_cut_at_its_border_is_no_example(tmp_path):
    """A break inside a row's last text leaves all its fields, and so does one inside its first."""
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC" / "dev.tsv").write_text(
        'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\ta\t"b\nand c"\n0\t7\t8\td\te\n1\t7\t8\tf\t"g"\nh\n'
    )
    found = read_examples(tmp_path, TASKS["mrpc"])
    assert found.texts == ("d", "f") and found.left_out.reasons == (
        "line 2 has a text that goes on in line 3", "line 3 has 1 field, not 5", "line 6 has 1 field, not 5",
    )  # fmt: skip
    (tmp_path / "sst2.dev.tsv").write_text('sentence\tlabel\n"a fine\nfilm"\t1\n"dull\nand\nlong"\t0\ngood\t1\n')
    found = read_examples(tmp_path, TASKS["sst2"])
    assert found.texts == ("good",) and found.left_out.count == 5


def test_cola_without_a_header_may_begin_with_a_broken_row(tmp_path):
    (tmp_path / "cola.dev.tsv").write_text("gj04\t1\t\ngj04\t1\t\tKim left.\ngj04\t0\t*\tLeft Kim.\n")
    found = read_examples(tmp_path, TASKS["cola"])
    assert found.texts == ("Kim left.", "Left Kim.") and found.left_out.reasons == ("line 1 has 3 fields, not 4",)


def test_jsonl_ends_its_lines_with_a_line_feed_alone(tmp_path):
    """JSON takes U+2028 and the like as they are."""
    text = "a\u2028b\x85c\u2029d"
    rows = [{"sentence": text, "label": 1}, {"sentence": "x\ud800y", "label": 1}, {"sentence": None, "label": 0}]
    lines = [json.dumps(row, ensure_ascii=i == 1) for i, row in enumerate(rows)]
    (tmp_path / "sst2.dev.jsonl").write_bytes("\r\n".join(lines).encode())
    found = read_examples(tmp_path, TASKS["sst2"])
    assert found.texts == (text,) and found.left_out.reasons == (
        "example 2 has a text 'sentence' that holds half a character, U+D800 at 1", "example 3 has no text 'sentence'",
    )  # fmt: skip


@pytest.mark.parametrize("line", ['{"sentence": "a", "label": 1' + "0" * 999 + "}", "[" * 99_999, '{"label": 1e999}'])
def test_strange_json_is_refused_in_one_sentence(line, tmp_path):
    (tmp_path / "sst2.dev.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"is not JSON|has the label|has no text"):
        read_examples(tmp_path, TASKS["sst2"])


def test_a_file_of_another_task_is_no_broken_one(tmp_path):
    """Where many labels are none of the task's, leaving those out would score what nobody asked for."""
    rows = [{"sentence1": "a", "sentence2": "b", "label": i % 3} for i in range(30)]
    with pytest.raises(ValueError, match=r"example 3 of .* has the label 2, expected one of entailment, not_ent"):
        read_examples(write_jsonl(tmp_path / "rte.jsonl", rows), TASKS["rte"])
    with pytest.raises(ValueError, match=r"line 2 of .* has 2 fields, not 3; is it SST-2\?"):
        (tmp_path / "sst2.dev.tsv").write_text("sentence\tlabel\tmore\na\t1\n")
        read_examples(tmp_path, TASKS["sst2"])


# --- scoring -------------------------------------------------------------------------------------------------------


def drawn(name, n=60, seed=0):
    """Examples of a task with texts that are their numbers."""
    rng = np.random.default_rng(seed)
    task = TASKS[name]
    labels = rng.integers(len(task.classes), size=n) if task.classes else rng.random(n) * 5
    rows = [dict.fromkeys(task.fields, str(i)) | {"label": label} for i, label in enumerate(labels.tolist())]
    return rows, labels


def read_drawn(name, tmp_path, n=60):
    rows, labels = drawn(name, n)
    split = TASKS[name].dev[0]
    return read_examples(write_jsonl(tmp_path / f"{name}.jsonl", rows), TASKS[name], split), labels


def knowing(task, labels, wrong):
    """A model that knows the labels, but is wrong about these examples."""

    def scores(texts, pairs):
        assert (pairs is None) == (len(task.fields) == 1)
        rows = [int(text) for text in texts]
        off = torch.tensor([row in wrong for row in rows])
        if not task.classes:
            return torch.where(off, 0.0, torch.from_numpy(labels[rows]).float())[:, None]
        said = (torch.from_numpy(labels[rows]) + off) % len(task.classes)
        return torch.nn.functional.one_hot(said, len(task.classes)).float()

    return scores


@pytest.mark.parametrize("name", TASKS)
def test_two_models_on_the_same_examples(name, tmp_path):
    examples, labels = read_drawn(name, tmp_path)
    task = TASKS[name]
    models = {"dense": knowing(task, labels, wrong={3}), "sparse": knowing(task, labels, wrong=set(range(3, 60, 3)))}
    seen = []
    said = answers(models, examples, batch_size=7, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60) and len(said["dense"]) == 60
    found = figures(examples, said)
    assert tuple(figure.metric for figure in found) == task.metrics
    for figure in found:
        assert figure.values["dense"] == METRICS[figure.metric](said["dense"], labels) > figure.values["sparse"]
        assert figure.difference == figure.values["sparse"] - figure.values["dense"]
        assert figure.p_value < 0.05 and figure.interval[1] < 0
        assert json.loads(json.dumps(figure.to_dict()))["values"] == dict(figure.values)
    accuracy = next((figure for figure in found if figure.metric == "accuracy"), None)
    if accuracy is not None:
        exact = mcnemar(said["dense"] == labels, said["sparse"] == labels)
        assert accuracy.test == "McNemar" and accuracy.p_value == exact.p_value == 2 / 2**18
    assert agreement(said) == 42 / 60


def test_one_model_is_compared_with_nothing(tmp_path):
    examples, labels = read_drawn("cola", tmp_path)
    found = figures(examples, answers({"dense": knowing(TASKS["cola"], labels, {1})}, examples))
    assert found[0].difference is None and found[0].to_dict()["p_value"] is None


def test_a_model_of_another_task_is_refused(tmp_path):
    examples, _ = read_drawn("mnli", tmp_path)
    with pytest.raises(
        ValueError, match=r"gave \(32, 2\) for 32 examples of MNLI, which asks for 3 classes; .*fine-tuned"
    ):
        answers({"dense": lambda texts, pairs: torch.zeros(len(texts), 2)}, examples)
    with pytest.raises(ValueError, match="infinite or undefined"):
        answers({"dense": lambda texts, pairs: torch.full((len(texts), 3), torch.nan)}, examples)


def scored(names, tmp_path):
    found = []
    for name in names:
        examples, labels = read_drawn(name, tmp_path)
        found += figures(examples, answers({"dense": knowing(TASKS[name], labels, {0, 1})}, examples))
    return found


def test_averages_say_what_is_missing(tmp_path):
    assert average(scored(["sst2"], tmp_path)) is None
    two = average(scored(["sst2", "mrpc"], tmp_path))
    assert two.tasks == ("sst2", "mrpc") and "mean over 2 of 9 tasks, no GLUE average: cola, stsb" in two.convention
    found = scored(list(TASKS), tmp_path)
    whole = average(found)
    assert not whole.missing and "all nine tasks, mnli with one of its two dev sets" in whole.convention
    by_task = [np.mean([f.values["dense"] for f in found if f.task == task]) for task in TASKS]
    assert whole.values["dense"] == pytest.approx(np.mean(by_task), abs=1e-12)


def test_m2_bert_averages_other_figures(tmp_path):
    """F1 alone of MRPC, Spearman alone of STS-B, and no WNLI."""
    found = scored(list(TASKS), tmp_path)
    theirs = m2_bert_average(found)
    left_out = {("mrpc", "accuracy"), ("stsb", "pearson"), ("wnli", "accuracy")}
    kept = [f for f in found if (f.task, f.metric) not in left_out]
    assert len(kept) == len(found) - 3 and theirs.values == average(kept).values != average(found).values
    assert "without wnli" in theirs.convention and "M2-BERT's own code reports" in theirs.convention
    assert m2_bert_average([f for f in found if f.task in ("sst2", "cola")]) is None


def test_verdicts_say_what_the_examples_can_tell(tmp_path):
    examples, labels = read_drawn("mnli", tmp_path)
    task = TASKS["mnli"]
    for wrong, sentence in (
        (set(), r"MNLI dev_matched accuracy: sparse 1.0000 against dense 1.0000, the same"),
        (
            {1, 2},
            r"sparse 0.9667 against dense 1.0000, -3.33 points, which 60 examples cannot tell from 0 \(p = 0.5, McN",
        ),
        (set(range(0, 60, 5)), r"-20.00 points, more than chance explains \(p = 0.00049, McNemar\)"),
    ):
        models = {"dense": knowing(task, labels, set()), "sparse": knowing(task, labels, wrong)}
        (said,) = verdict(figures(examples, answers(models, examples)))
        assert re.search(sentence, said), said
    assert verdict(figures(examples, answers({"dense": knowing(task, labels, set())}, examples))) == []


@pytest.mark.parametrize(
    ("task", "asked", "splits"),
    [
        ("sst2", None, ("dev",)),
        ("sst2", "validation", ("dev",)),
        ("sst2", "train", ("train",)),
        ("mnli", None, ("dev_matched", "dev_mismatched")),
        ("mnli", "validation", ("dev_matched", "dev_mismatched")),
        ("mnli", "validation_mismatched", ("dev_mismatched",)),
        ("mnli", "dev_matched", ("dev_matched",)),
    ],
)
def test_a_split_has_two_names(tmp_path, task, asked, splits):
    """Files are found by the one or the other, whichever is asked for."""
    assert splits_of(TASKS[task], asked) == splits
    texts = {field: "a" for field in TASKS[task].fields}
    for name in (splits[0], splits[0].replace("dev", "validation")):
        path = tmp_path / f"{task}.{name}.jsonl"
        path.write_text(json.dumps({**texts, "label": 0}))
        for either in (splits[0], splits[0].replace("dev", "validation")):
            assert read_examples(tmp_path, TASKS[task], either).source == str(path)
        path.unlink()


@pytest.mark.parametrize(
    ("path", "task", "split", "says"),
    [
        ("rte.dev.jsonl", "wnli", "dev", "named after RTE, and WNLI was asked for; pass the file of WNLI, ask for rte"),
        ("SST-2.dev.jsonl", "cola", "dev", "named after SST-2, and CoLA"),
        ("CoLA/dev.jsonl", "sst2", "dev", "named after CoLA, and SST-2"),
        ("sst2.train.jsonl", "sst2", "dev", "the split train, and dev was asked for; .*--split"),
        ("dev.jsonl", "sst2", "train", "the split dev, and train"),
        ("mnli.dev_mismatched.jsonl", "mnli", "dev_matched", "the split mismatched, and dev_matched"),
        ("sst2-validation.jsonl", "sst2", "dev", None),
        ("mnli.dev.jsonl", "mnli", "dev_matched", None),
        ("RTE_and_WNLI.jsonl", "wnli", "dev", None),
        ("train-dev.jsonl", "sst2", "dev", None),
        ("mine.jsonl", "sst2", "train", None),
    ],
)
def test_a_file_says_in_its_name_what_it_is(path, task, split, says, tmp_path):
    """The rows of two tasks, or of two splits, may look the same, and their figures would mean something else."""
    row = {**dict.fromkeys(TASKS[task].fields, "a"), "label": 0}
    path = write_jsonl(tmp_path / path, [row])
    if says is None:
        assert len(read_examples(path, TASKS[task], split)) == 1
    else:
        with pytest.raises(ValueError, match=says):
            read_examples(path, TASKS[task], split)


def test_two_files_for_one_split_are_not_chosen_between(tmp_path):
    write_jsonl(tmp_path / "sst2.dev.jsonl", SST2)
    (tmp_path / "sst2").symlink_to(tmp_path)
    (tmp_path / "sst2.validation.jsonl").symlink_to(tmp_path / "sst2.dev.jsonl")
    assert len(read_examples(tmp_path, TASKS["sst2"])) == 3
    write_jsonl(tmp_path / "SST-2" / "dev.jsonl", SST2[:1])
    with pytest.raises(ValueError, match=r"2 files for the dev split of SST-2, sst2.dev.jsonl and SST-2/dev.jsonl; ke"):
        read_examples(tmp_path, TASKS["sst2"])


def test_empty_texts_are_no_examples_and_an_empty_split_is_none(tmp_path):
    (tmp_path / "sst2.dev.tsv").write_text("sentence\tlabel\n\t1\n  \t0\ngood\t1\n")
    found = read_examples(tmp_path, TASKS["sst2"])
    assert found.texts == ("good",) and found.left_out.reasons == (
        "line 2 has an empty text 'sentence'", "line 3 has an empty text 'sentence'",
    )  # fmt: skip
    with pytest.raises(ValueError, match="the split has an empty name; pass train, dev or test"):
        splits_of(TASKS["sst2"], " ")


def test_a_row_that_says_a_name_twice_is_broken(tmp_path):
    """Readers disagree on which of the two counts."""
    twice = '{"sentence": "a", "label": 1, "label": 0}\n'
    path = tmp_path / "sst2.dev.jsonl"
    path.write_text('{"sentence": "b", "label": 1}\n' + twice)
    found = read_examples(tmp_path, TASKS["sst2"])
    assert found.texts == ("b",) and found.left_out.reasons == ("example 2 has 'label' twice",)
    path.write_text(twice)
    with pytest.raises(ValueError, match=r"example 1 of .* has 'label' twice; is it SST-2\?"):
        read_examples(tmp_path, TASKS["sst2"])
