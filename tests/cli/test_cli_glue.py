"""The verbs for models of text: fine-tune, score, fill in and retrieve, on a tiny M2-BERT."""

import json
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec

import layouts_m2
import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file
from verbs import answer, refusal, run

from sparsify.cli import terminal
from sparsify.converters import load, m2_bert
from sparsify.converters.models.m2_bert import M2Bert, M2BertConfig
from sparsify.converters.tokenizers.wordpiece import TextTokenizer
from sparsify.evals.glue import finetune
from sparsify.evals.glue.labels import described
from sparsify.evals.glue.tasks import TASKS
from sparsify.pipeline import evaluate
from sparsify.pipeline import finetune as tuning
from sparsify.pipeline.commands import how_to_score

LENGTH = 24
GOOD, BAD, REST = ("good", "able"), ("bad", "not"), ("film", "we", "saw", "it", "is", "was", "and", "the")
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": len(layouts_m2.WORDS),
    "max_position_embeddings": LENGTH, "hyena_filter_order": 8, "pool_all": True,
}  # fmt: skip
TUNE = ("--lr", 5e-3, "--epochs", 3, "--batch", 16, "--seed", 1, "--pad-to", LENGTH)


def sentences(count, seed):
    """Texts that are positive where they hold a good word."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.randrange(2)
        words = rng.choices(REST, k=rng.randint(3, 12))
        words.insert(rng.randrange(len(words)), rng.choice((BAD, GOOD)[label]))
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2 and CoLA in a made-up language; RTE's dev set."""
    folder = tmp_path_factory.mktemp("glue")
    pairs = [dict(sentence1=row["sentence"], sentence2="we saw it", label=row["label"]) for row in sentences(20, 5)]
    for name, rows in (
        ("sst2.train", sentences(160, 0)), ("sst2.dev", sentences(60, 1)), ("cola.train", sentences(80, 2)),
        ("cola.dev", sentences(40, 3)), ("rte.dev", pairs),
    ):  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A masked language model that learnt nothing."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "vocab.txt").write_text("\n".join(layouts_m2.WORDS) + "\n")
    torch.manual_seed(0)
    return m2_bert.save(M2Bert(M2BertConfig(**SIZES)), folder / "tiny", TextTokenizer(folder))


@pytest.fixture(scope="module")
def classifier(pretrained, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "sst2"
    result = answer("finetune", pretrained, "--task", "sst2", "--data", data, "--out", out, *TUNE)
    assert result["best"]["value"] > 0.8 > result["evaluations"][0]["value"] and result["resumed_at"] == 0
    return out


@pytest.fixture(scope="module")
def sparse(classifier, tmp_path_factory):
    out = tmp_path_factory.mktemp("sparse") / "sst2"
    answer("convert", classifier, out, "--low-pass", 0.125)
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Paragraphs of words the model knows; a third of their halves has no more than it takes."""
    rng = random.Random(7)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    halves = [" ".join(rng.choices(GOOD + BAD + REST, k=22 if i % 3 else 20)) + "." for i in range(24)]
    path.write_text("\n\n".join(f"{a} {b}" for a, b in zip(halves[::2], halves[1::2], strict=True)))
    return path


def test_a_classifier_scores_as_it_did_in_training(classifier, data):
    result = answer("eval", "glue", classifier, "--task", "sst2", "--data", data, "--pad-to", LENGTH)
    figure = result["figures"][0]
    assert list(figure["values"]) == ["dense"] and figure["n"] == 60 and figure["p_value"] is None
    assert figure["values"]["dense"] > 0.8 and result["average"] is None and result["verdict"] == []
    assert "padded to 24 tokens" in result["convention"] and result["scored"][0]["cut"] == 0


def test_sparse_against_dense(sparse, classifier, data):
    """A plan is compared with the model itself, or with a checkpoint of the same weights: the same figures."""
    ask = ("eval", "glue", sparse, "--task", "sst2", "--data", data, "--pad-to", LENGTH)
    result = answer(*ask)
    figure = result["figures"][0]
    assert list(figure["values"]) == ["dense", "sparse"] and figure["test"] == "McNemar"
    assert figure["difference"] == figure["values"]["sparse"] - figure["values"]["dense"]
    assert figure["interval"][0] <= figure["difference"] <= figure["interval"][1] and 0 < figure["p_value"] <= 1
    assert 0 < result["scored"][0]["agreement"] <= 1 and len(result["verdict"]) == 1
    assert answer(*ask, "--baseline", classifier)["figures"] == result["figures"]
    said = run(*ask).stdout
    assert "difference, paired" in said and "McNemar" in said and "SST-2 accuracy: sparse" in said


def test_texts_in_other_words_are_told(classifier, pretrained, data, tmp_path):
    """A figure over tokens that are all the same says nothing of a text."""
    rows = [{"sentence": "größe zählt", "label": i % 2} for i in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("eval", "glue", classifier, "--task", "sst2", "--data", tmp_path / "a.jsonl")
    assert done.stderr.count("note: 100% of the tokens are [UNK]") == 1
    (tmp_path / "a.txt").write_text("good zählt größe " * 40)
    (said,) = answer("eval", "mlm", pretrained, "--data", tmp_path / "a.txt", "--context", 8)["data_notes"]
    assert said.startswith("67% of the tokens are [UNK]")
    assert answer("eval", "glue", classifier, "--task", "sst2", "--data", data)["data_notes"] == []
    assert "Folder or file" not in (said := run("finetune", "--help").stdout) and "Folder with examples" in said


def test_two_dense_models_are_called_what_they_are_given_as(classifier, pretrained, data, text, tmp_path):
    other = tmp_path / "other"
    answer("finetune", pretrained, "--task", "sst2", "--data", data, "--out", other, *TUNE[:-3], 2, *TUNE[-2:])
    result = answer("eval", "glue", classifier, "--task", "sst2", "--data", data, "--baseline", other)
    assert list(result["figures"][0]["values"]) == ["baseline", "model"] and result["verdict"]
    assert all("sparse" not in said and "dense" not in said for said in result["verdict"])
    ask = ("eval", "mlm", pretrained, "--data", text, "--context", 10, "--baseline", pretrained)
    first, second = answer(*ask)["variants"]
    assert (first["name"], second["name"], second["baseline"]) == ("baseline", "model", "baseline")
    said = run(*ask).stdout
    assert "against baseline, paired" in said and "KL from baseline" in said and "dense" not in said


def test_rows_that_are_left_out_are_told_and_kept_with_the_figures(classifier, pretrained, data, tmp_path):
    """Once for all that a command reads, in scoring and in training."""
    (rows_in := tmp_path / "data").mkdir()
    for split, count in (("dev", 30), ("train", 40)):
        rows = [f"{row['sentence']}\t{row['label']}" for row in sentences(count, 1)]
        rows[3:3] = ['"cut', 'in two"\t1', "good"]
        (rows_in / f"sst2.{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    ask = ("eval", "glue", classifier, "--task", "sst2", "--data", rows_in, "--pad-to", LENGTH)
    dev = "3 rows of sst2.dev.tsv left out: line 5 has 1 field, not 2; line 6 has a text that begins in line 5; line 7"
    result = answer(*ask)
    (told,) = result["data_notes"]
    assert told.startswith(dev) and result["scored"][0]["left_out"] == 3 and result["figures"][0]["n"] == 30
    assert run(*ask).stderr.count(f"note: {dev}") == 1
    tuned = answer("finetune", pretrained, "--task", "sst2", "--data", rows_in, "--out", tmp_path / "out", *TUNE)
    assert [note.split(" left out")[0] for note in tuned["data_notes"]] == [
        "3 rows of sst2.train.tsv",
        "3 rows of sst2.dev.tsv",
    ]


def test_padding_is_remembered(classifier, sparse, pretrained, data, tmp_path):
    """What a classifier was trained with is the default, also after `convert`; any other length says so."""
    ask = ("--task", "sst2", "--data", data)
    for model in (classifier, sparse):
        made = json.loads((model / "config.json").read_text())["sparsify_finetune"]
        assert made == {"task": "sst2", "pad_to": LENGTH, "from": load(pretrained).sha256}
        result = answer("eval", "glue", model, *ask)
        assert f"padded to {LENGTH} tokens" in result["convention"] and "as in its fine-tune" in result["convention"]
        assert result["figures"] == answer("eval", "glue", model, *ask, "--pad-to", LENGTH)["figures"]
    other = answer("eval", "glue", classifier, *ask, "--pad-to", 0)
    assert "unlike in its fine-tune, which padded to 24" in other["convention"]
    answer("finetune", pretrained, *ask, "--out", tmp_path / "own", *TUNE, "--pad-to", 0, "--limit", 16)
    result = answer("eval", "glue", tmp_path / "own", *ask)
    assert "at its own length, without padding" in result["convention"] and "as in its" in result["convention"]


def test_what_config_json_says_of_a_fine_tune_is_checked(classifier, data, tmp_path):
    ask = ("eval", "glue", tmp_path / "model", "--task", "sst2", "--data", data)
    config = json.loads((classifier / "config.json").read_text())
    shutil.copytree(classifier, tmp_path / "model")
    for made, said in (
        ({"pad_to": "24"}, "has '24' for sparsify_finetune.pad_to"), ({"pad_to": -1}, "has -1 for"),
        ({"pad_to": True}, "has True for"), ({"pad_to": 99}, None), ({}, None), ("24", None),
    ):  # fmt: skip
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"sparsify_finetune": made}))
        if said:
            assert said in refusal(*ask)
        else:
            assert "padded to 24 tokens" in answer(*ask)["convention"]  # all that it takes


def test_how_to_score(classifier, pretrained, tmp_path):
    """A command for what the head is for; what a stranger's config.json says is not repeated."""
    from layouts import write_tiny

    out, p = tmp_path / "a b", load(classifier)
    assert how_to_score(p, out).endswith(f" eval glue {shlex.quote(str(out))} --task sst2 --data DIR")
    p.config["sparsify_finetune"]["task"] = "sst2; rm -rf /"
    assert how_to_score(p, out).endswith(" --task TASK --data DIR")
    assert " eval mlm " in how_to_score(load(pretrained), out)
    encoder = M2Bert(M2BertConfig(**{**SIZES, "head": "encoder"}))
    m2_bert.save(encoder, tmp_path / "encoder", p.tokenizer)
    assert " eval retrieval " in how_to_score(load(tmp_path / "encoder"), out)
    assert " bench " in how_to_score(load(write_tiny(tmp_path / "dna")), out)


def test_progress_is_a_line_now_and_then_without_a_terminal(pretrained, data, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_A_LINE", 0)
    done = run("finetune", pretrained, "--task", "sst2", "--data", data, "--out", tmp_path / "out", *TUNE)
    lines = [line for line in done.stderr.splitlines() if line.startswith("fine-tuning on SST-2: ")]
    assert len(lines) == 30 and "1 of 30 steps, loss 0" in lines[0] and "best" not in lines[0] and "nan" not in lines[0]
    assert "30 of 30 steps, loss 0" in lines[-1] and ", best dev accuracy " in lines[-1]


def test_length_is_part_of_the_input(classifier, data):
    """Padding is data; at their own lengths all texts are as if alone."""
    ask = ("eval", "glue", classifier, "--task", "sst2", "--data", data)
    own = answer(*ask, "--pad-to", 0)
    assert "own length, without padding" in own["convention"]
    p = load(classifier)
    rows = [json.loads(line) for line in (data / "sst2.dev.jsonl").read_text().splitlines()]
    alone = [p.model(torch.tensor([p.tokenizer.encode(row["sentence"])])).argmax().item() for row in rows]
    right = sum(said == row["label"] for said, row in zip(alone, rows, strict=True))
    assert own["figures"][0]["values"]["dense"] == right / 60
    assert answer(*ask, "--pad-to", 8)["scored"][0]["cut"] > 10


def test_all_tasks_say_what_is_missing(classifier, data, tmp_path):
    for name in ("sst2", "cola", "rte"):
        shutil.copytree(classifier, tmp_path / name)
        made_for(tmp_path / name, name)
    result = answer("eval", "glue", tmp_path / "{task}", "--task", "all", "--data", data, "--pad-to", LENGTH)
    assert [figure["task"] for figure in result["figures"]] == ["cola", "sst2", "rte"]
    assert "mean over 3 of 9 tasks, no GLUE average: mrpc, stsb" in result["average"]["convention"]
    assert len(result["missing"]) == 7 and "no dev_matched split of MNLI" in " ".join(result["missing"])
    one = refusal("eval", "glue", classifier, "--task", "sst2,mrpc", "--data", data, "--pad-to", LENGTH)
    assert "holds no dev split of MRPC" in one


# --- whose labels, whose task --------------------------------------------------------------------------------------


def made_for(folder, name):
    """Have a classifier's config.json say that it was fine-tuned for another task of two classes."""
    rewrite(folder, **described(TASKS[name]), sparsify_finetune={"task": name, "pad_to": LENGTH})


def rewrite(folder, **said):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | said
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


def stranger(folder, **said):
    """A classifier of which config.json says only what is given here."""
    names = ("id2label", "label2id", "finetuning_task", "sparsify_finetune", "problem_type")
    return rewrite(folder, **dict.fromkeys(names) | said)


SWAPPED = {"0": "POSITIVE", "1": "NEGATIVE"}


@pytest.mark.parametrize(
    "said",
    [{"id2label": SWAPPED}, {"label2id": {"Pos": 0, "neg.": 1}}, {"id2label": {"0": "LABEL_1", "1": "LABEL_0"}},
     {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"positive": 0, "negative": 1}}],
)  # fmt: skip
def test_labels_go_by_their_names(classifier, data, tmp_path, said):
    """A model whose classes come in another order scores as well as it does in ours."""
    copy = tmp_path / "swapped"
    shutil.copytree(classifier, copy)
    tensors = load_file(copy / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name].flip(0).contiguous()
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    ask = ("--task", "sst2", "--data", data, "--pad-to", LENGTH)
    right = answer("eval", "glue", classifier, *ask)["figures"][0]["values"]["dense"]
    found = answer("eval", "glue", stranger(copy, **said), *ask)["figures"]
    assert found[0]["values"]["dense"] == right > 0.8
    both = answer("eval", "glue", copy, *ask, "--baseline", classifier)["figures"][0]
    assert both["values"] == {"baseline": right, "model": right}
    plain = stranger(copy)  # nobody can know: in order, and wrong
    assert answer("eval", "glue", plain, *ask)["figures"][0]["values"]["dense"] == pytest.approx(1 - right)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"id2label": {"0": "entailment", "1": "not_entailment"}},
         "has the labels entailment, not_entailment, and SST-2 asks for negative, positive; pass a model of SST-2"),
        ({"id2label": {"0": "negative", "1": "neutral", "2": "positive"}}, "the labels negative, neutral, positive"),
        ({"id2label": {"0": "negative", "1": "negative"}}, "has the labels negative, negative"),
        ({"id2label": {"0": "negative", "1": "positive"}, "label2id": SWAPPED}, "for label2id, expected a number"),
        ({"id2label": {"0": "negative", "1": "positive"}, "label2id": {"positive": 0, "negative": 1}},
         "contradict each other"),
        ({"id2label": "negative"}, "for id2label, expected a label for each number"),
        ({"finetuning_task": "CoLA"}, "was fine-tuned for CoLA, and SST-2 asks for something else; pass a model"),
    ],
)  # fmt: skip
def test_labels_of_another_task_are_refused(classifier, data, tmp_path, said, sentence):
    shutil.copytree(classifier, tmp_path / "model")
    ask = ("eval", "glue", stranger(tmp_path / "model", **said), "--task", "sst2", "--data", data)
    assert sentence in refusal(*ask)


def test_labels_without_names_are_in_order(classifier, data, tmp_path):
    shutil.copytree(classifier, tmp_path / "model")
    ask, values = ("--task", "sst2", "--data", data, "--pad-to", LENGTH), []
    for names in ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "0", "1": "1"}, None):
        model = stranger(tmp_path / "model", id2label=names)
        values.append(answer("eval", "glue", model, *ask)["figures"][0]["values"]["dense"])
    assert len(set(values)) == 1 and values[0] > 0.8


def test_a_model_of_another_task_is_refused(classifier, data, tmp_path):
    """With its own name for it, and as a baseline; where it is asked for all the same there is no mean of it."""
    shutil.copytree(classifier, tmp_path / "cola")
    made_for(tmp_path / "cola", "cola")
    ask = ("eval", "glue", classifier, "--data", data)
    said = refusal(*ask, "--task", "sst2,cola,rte")
    assert "was fine-tuned for SST-2, and CoLA asks for something else" in said and "--other-task" in said
    assert "was fine-tuned for CoLA" in refusal(*ask, "--task", "sst2", "--baseline", tmp_path / "cola")
    result = answer(*ask, "--task", "sst2,cola,rte", "--other-task")
    assert len(result["figures"]) == 3 and result["average"] is None
    assert [row["fine_tuned_for"] for row in result["scored"]] == [None, "SST-2", "SST-2"]
    assert result["scored"][1]["convention"].endswith("fine-tuned for SST-2, not for this task")
    both = ("--task", "sst2", "--other-task", "--baseline", tmp_path / "cola")
    assert refusal(*ask, *both).endswith("compare models of one task")


def test_a_fine_tune_says_what_it_is_to_transformers_too(classifier, data):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    config = json.loads((classifier / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"} and config["finetuning_task"] == "sst2"
    assert config["label2id"] == {"negative": 0, "positive": 1} and config["num_labels"] == 2
    assert described(TASKS["stsb"])["problem_type"] == "regression" and described(TASKS["stsb"])["num_labels"] == 1
    rows = [json.loads(line) for line in (data / "sst2.dev.jsonl").read_text().splitlines()]
    pipe = pipeline("text-classification", model=str(classifier), device="cpu")
    words = [row["sentence"] for row in rows]
    said = pipe(words, batch_size=7, padding="max_length", truncation=True)
    right = sum(found["label"] == ("negative", "positive")[row["label"]] for found, row in zip(said, rows, strict=True))
    ours = answer("eval", "glue", classifier, "--task", "sst2", "--data", data)["figures"][0]["values"]["dense"]
    assert right / len(rows) == ours
    tokenizer, model = (
        auto.from_pretrained(classifier) for auto in (AutoTokenizer, AutoModelForSequenceClassification)
    )
    batch = tokenizer(words[:2], padding="max_length", truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, LENGTH) and model(**batch).logits.shape == (2, 2)


# --- what is not there ---------------------------------------------------------------------------------------------


def test_models_are_looked_for_before_the_work(classifier, data, tmp_path, monkeypatch):
    shutil.copytree(classifier, tmp_path / "sst2")
    ask = ("eval", "glue", tmp_path / "{task}", "--task", "all", "--data", data)
    done = run(*ask)
    assert done.exit_code == 1 and "loading" not in done.stderr
    assert "there is no model of CoLA" in done.stderr and "1 more tasks have none" in done.stderr
    result = answer(*ask, "--skip-missing")
    assert [row["task"] for row in result["scored"]] == ["sst2"]
    assert sum("there is no model of" in sentence for sentence in result["missing"]) == 2
    assert "pass one that is there" in refusal("eval", "glue", tmp_path / "x{task}", *ask[3:], "--skip-missing")


def test_what_was_scored_is_printed_whatever_comes_after(classifier, pretrained, data, tmp_path):
    for name, source in (("cola", classifier), ("sst2", pretrained)):
        shutil.copytree(source, tmp_path / name)
    made_for(tmp_path / "cola", "cola")
    ask = ("eval", "glue", tmp_path / "{task}", "--task", "cola,sst2", "--data", data, "--pad-to", LENGTH)
    done = run(*ask, "--json")
    assert done.exit_code == 1 and "has the head 'mlm'" in done.stderr
    assert [figure["task"] for figure in json.loads(done.stdout)["figures"]] == ["cola"]


def test_models_of_two_kinds_are_refused_before_the_work(classifier, sparse, data, tmp_path):
    for name, source in (("cola", classifier), ("sst2", sparse)):
        shutil.copytree(source, tmp_path / name)
        made_for(tmp_path / name, name)
    done = run("eval", "glue", tmp_path / "{task}", "--task", "cola,sst2", "--data", data)
    assert "under a plan and some are not" in done.stderr and "loading" not in done.stderr


@pytest.mark.parametrize("split", ["validation", "dev"])
def test_a_split_by_either_name(classifier, data, split):
    figure = answer("eval", "glue", classifier, "--task", "sst2", "--data", data, "--split", split)["figures"][0]
    assert figure["split"] == "dev" and figure["n"] == 60


def test_masked_tokens(pretrained, text, tmp_path):
    answer("convert", pretrained, tmp_path / "sparse", "--low-pass", 0.125)
    ask = ("eval", "mlm", tmp_path / "sparse", "--data", text, "--context", 10)
    dense, sparse = answer(*ask)["variants"]
    assert dense["name"] == "dense" and sparse["baseline"] == "dense" and sparse["kl"] > 0
    assert dense["pseudo_perplexity"] > 5 and sparse["nll_difference_stderr"] > 0
    assert answer(*ask)["variants"] == [dense, sparse] != answer(*ask, "--seed", 1)["variants"]
    assert "pseudo-perplexity" in run(*ask).stdout
    itself = answer("eval", "mlm", pretrained, "--data", text, "--context", 10)["variants"]
    assert itself == [dense]


def test_a_window_of_masked_tokens_has_two_at_least(pretrained, text):
    done = run("eval", "mlm", pretrained, "--data", text, "--context", 1)
    assert done.exit_code == 2 and "1 is not in the range x>=2" in done.stderr
    with pytest.raises(ValueError, match="--context must be 2 or more, got 1"):
        evaluate.evaluate_mlm(str(pretrained), text, context=1)


def test_retrieval(sparse, text):
    ask = ("eval", "retrieval", sparse, "--data", text)
    dense, own = answer(*ask)["variants"]
    assert 0 < dense["mrr"] <= 1 and dense["cosine"] is None
    assert 0.5 < own["cosine"] < 1 and own["cosine_worst"] <= own["cosine"] and 0 < own["top_overlap"] <= 1
    assert "rank agreement" in run(*ask).stdout
    whole = answer(*ask)
    assert whole["cut"] == 16 and "longer ones cut, as 16 of 24 were" in whole["convention"]


@pytest.fixture(scope="module")
def planned(pretrained, text, tmp_path_factory):
    """A folder that a budget was asked for, and what was said of it."""
    out = tmp_path_factory.mktemp("planned") / "out"
    ask = ("--max-ppl-increase", "2%", "--calibration", text, "--target", "kept", "--context", 10)
    return out, answer("convert", pretrained, out, *ask)


def test_a_plan_within_a_budget(planned, text):
    """Measured on masked tokens of windows held out, and called what it is wherever it is told."""
    out, result = planned
    found, evaluation = result["planned"], result["evaluation"]
    assert found["chosen"]["fits"] and found["chosen"]["increase"] + found["chosen"]["stderr"] <= 0.02
    assert found["chosen"]["gain"] > 1.5 and load(out).plan.policy == "max-ppl-increase 2%"
    assert evaluation["perplexity_ratio"] - 1 == pytest.approx(found["chosen"]["increase"], abs=1e-9)
    assert evaluation["kl"] == pytest.approx(found["chosen"]["kl"], rel=1e-6)
    assert evaluation["leak"] is None and evaluation["perplexity_by_position"] == [] and evaluation["speed"]["columns"]
    assert found["figure"] == evaluation["figure"] == "pseudo-perplexity"
    assert json.loads((out / "report.json").read_text())["planned"] == found
    for name in ("README.md", "report.html"):
        told = re.sub("<[^>]*>", "", (out / name).read_text())
        assert "pseudo-perplexity on held-out windows; the budget is 2 %" in told
        assert "lags cut" not in told and "perplexity" not in told.lower().replace("pseudo-perplexity", "")
    assert "fill-mask" in (out / "README.md").read_text()
    assert result["next"].endswith(f"eval mlm {out} --data {text} --context 10")
    assert answer("eval", *shlex.split(result["next"].split(" eval ", 1)[1]))["variants"][1]["kl"] > 0
    assert not out.with_name(".out.planning").exists()


def test_one_mask_everywhere_or_a_plan(pretrained, text, tmp_path):
    ask = ("eval", "front", pretrained, "--calibration", text, "--target", "kept", "--context", 10)
    drawn = find_spec("matplotlib") is not None
    result = answer(*ask, *(("--picture", tmp_path / "front.png") if drawn else ()))
    assert result["figure"] == "pseudo-perplexity" and len(result["pairs"]) > 6
    assert not drawn or (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    said = run(*ask).stdout
    assert "pseudo-perplexity" in said and "leak" not in said and "lags cut" not in said


def test_what_cannot_be_drawn_is_said_before_the_work(pretrained, text, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "find_spec", lambda name: None)
    ask = ("eval", "front", pretrained, "--calibration", text, "--picture", tmp_path / "front.png")
    assert refusal(*ask).endswith("brings what draws pictures") and not (tmp_path / "front.png").exists()


def test_a_plan_for_the_classifier(planned, classifier, data, tmp_path):
    """Refused in a sentence where a budget is asked for; the plan of the language model that it comes from fits."""
    text = tmp_path / "text.txt"
    text.write_text("a film " * 500)
    ask = ("convert", classifier, tmp_path / "out")
    said = refusal(*ask, "--max-ppl-increase", "1%", "--calibration", text)
    assert "has the head 'classifier', which predicts no tokens" in said and "`finetune`" in said and "--plan" in said
    plan = json.loads((planned[0] / "plan.json").read_text())
    mine = tmp_path / "plan.json"
    mine.write_text(json.dumps(plan | {"source": plan["source"] | {"sha256": "0" * 64}}))
    assert "take the sha256 out of the file" in refusal(*ask, "--plan", mine)
    mine.write_text(json.dumps(plan))
    said = run(*ask, "--plan", mine)
    assert (
        said.exit_code == 0
        and "which this model was fine-tuned from, and the fine-tune moved the filters" in said.stderr
    )
    assert load(tmp_path / "out").plan.filters == load(planned[0]).plan.filters
    figure = answer("eval", "glue", tmp_path / "out", "--task", "sst2", "--data", data)["figures"][0]
    assert list(figure["values"]) == ["dense", "sparse"]


def test_a_plan_for_another_head_with_the_same_filters(pretrained, classifier, planned, tmp_path):
    """Wherever that head comes from."""
    p = load(pretrained)
    head = m2_bert.save(p.model.with_head("classifier", num_labels=2), tmp_path / "head", p.tokenizer)
    done = run("convert", head, tmp_path / "out", "--plan", planned[0] / "plan.json")
    assert (
        done.exit_code == 0
        and "whose filters are these; what was measured there does not hold for this head" in done.stderr
    )
    assert load(tmp_path / "out").plan.filters == load(planned[0]).plan.filters
    plan = json.loads((planned[0] / "plan.json").read_text())
    other = tmp_path / "plan.json"
    other.write_text(json.dumps(plan | {"source": plan["source"] | {"filters": "0" * 64}}))
    assert "which are not these" in refusal("convert", head, tmp_path / "x", "--plan", other)


def test_a_search_that_is_killed(pretrained, text, tmp_path):
    """The same command goes on from the measurements that are on the disk, and finds the same plan."""
    script = (
        "import os, signal, sys\nfrom sparsify.search.journal import Journal\nappend = Journal.append\n"
        "def mortal(self, entry):\n"
        "    if len(self.known) == 7: os.kill(os.getpid(), signal.SIGKILL)\n    append(self, entry)\n"
        "Journal.append = mortal\nfrom sparsify.cli import main\nmain(sys.argv[1:])\n"
    )
    ask = ("--max-ppl-increase", "1%", "--calibration", text, "--target", "kept", "--context", 10)
    args = [str(a) for a in ("convert", pretrained, tmp_path / "out", *ask)]
    killed = subprocess.run([sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    again, alone = run(*args), run("convert", pretrained, tmp_path / "alone", *ask)
    assert again.exit_code == 0 and "going on from 7 measurements and the moments of" in again.stderr
    assert alone.exit_code == 0
    assert (tmp_path / "out" / "plan.json").read_bytes() == (tmp_path / "alone" / "plan.json").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "alone"}


def test_after_sparsifying_filters_stay_as_planned(pretrained, data, tmp_path):
    answer("convert", pretrained, tmp_path / "sparse", "--low-pass", 0.25)
    where = ("--task", "sst2", "--data", data)
    result = answer("finetune", tmp_path / "sparse", *where, "--out", tmp_path / "out", *TUNE)
    assert result["best"]["value"] > 0.7
    before, after = load_file(pretrained / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert changed and not [name for name in changed if "filter_fn" in name and not name.endswith("filter_fn.bias")
                            and not name.endswith("filter_fn2.bias")]  # fmt: skip
    assert load(tmp_path / "out").plan.to_dict()["filters"] == load(tmp_path / "sparse").plan.to_dict()["filters"]
    figures = answer("eval", "glue", tmp_path / "out", *where)["figures"]  # at the length it was trained with
    assert figures[0]["values"]["sparse"] == result["best"]["value"]


def test_stopped_before_anything_was_kept(pretrained, data, tmp_path, monkeypatch):
    """It says so: whoever stops it must not count on going on."""

    def stopped(*_):
        raise KeyboardInterrupt

    args = ("finetune", pretrained, "--task", "sst2", "--data", data, "--out", tmp_path / "out", *TUNE)
    for kept, says in (
        (200, "interrupted; nothing is kept so far, so the same command begins anew"),
        (1, f"interrupted; the same command goes on from here (the run kept in {tmp_path / 'out.training'})"),
    ):
        monkeypatch.setattr(tuning, "SAVE_EVERY", kept)
        steps = iter([finetune.train_step] * 2 + [stopped])
        with monkeypatch.context() as patch:
            patch.setattr(finetune, "train_step", lambda *a, steps=steps: next(steps)(*a))
            done = run(*args)
        assert done.exit_code == 130 and done.stderr.splitlines()[-1] == says


def test_killed_and_started_again(pretrained, data, classifier, tmp_path):
    """The process dies between two steps; the same command goes on, and the folder has the same bytes."""
    script = (
        "import os, signal, sys\nfrom sparsify.pipeline import finetune as verb\n"
        "from sparsify.evals.glue import finetune\n"
        "verb.SAVE_EVERY, step = 4, finetune.train_step\ncalls = []\n"
        "def mortal(*a):\n    calls.append(1)\n"
        "    if len(calls) == 18: os.kill(os.getpid(), signal.SIGKILL)\n    return step(*a)\n"
        "finetune.train_step = mortal\nfrom sparsify.cli import main\nmain(sys.argv[1:])\n"
    )
    out = tmp_path / "out"
    args = [str(a) for a in ("finetune", pretrained, "--task", "sst2", "--data", data, "--out", out, *TUNE)]
    killed = subprocess.run([sys.executable, "-c", script, *args], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    result = answer(*args)
    assert result["resumed_at"] == 16 and not (tmp_path / "out.training").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    for path in classifier.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


@pytest.mark.parametrize("moment", ["train_step", "write_classifier"])
def test_a_full_disk_and_started_again(pretrained, data, classifier, small_disk, fill_up, monkeypatch, moment):
    """When the run is saved for the second time, or the classifier written: one sentence, and nothing is lost."""
    monkeypatch.setattr(tuning, "SAVE_EVERY", 4)
    module, calls = {"train_step": finetune, "write_classifier": tuning}[moment], []
    original = getattr(module, moment)

    def filling(*args):
        calls.append(args)
        if len(calls) == {"train_step": 7, "write_classifier": 1}[moment]:
            fill_up(1)
        return original(*args)

    out = small_disk / "out"
    args = ["finetune", pretrained, "--task", "sst2", "--data", data, "--out", out, *TUNE]
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, filling)
        done = run(*args)
    state = small_disk / "out.training"
    lost = state if moment == "train_step" else out
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit) and done.stderr.splitlines()[-1] == (
        f"Error: {lost} could not be written (No space left on device); free some space, or write to another disk; "
        f"the same command then goes on from here (the run kept in {state})"
    )  # fmt: skip
    (small_disk / "ballast").unlink()
    assert [path.name for path in small_disk.iterdir()] == ["out.training"]
    assert answer(*args)["resumed_at"] == (4 if moment == "train_step" else 30)
    assert [path.name for path in small_disk.iterdir()] == ["out"]
    for path in classifier.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_refusals(pretrained, classifier, data, text, tmp_path):
    where = ("--task", "sst2", "--data", data)
    for sentence, args in (
        ("has the head 'mlm', and this takes 'classifier'; `sparsify finetune`", ("eval", "glue", pretrained, *where)),
        ("has the head 'classifier', and this takes 'mlm'", ("eval", "mlm", classifier, "--data", text)),
        ("--pad-to 99 is longer than the 24 tokens", ("eval", "glue", classifier, *where, "--pad-to", 99)),
        ("--context 99 is longer than the model's 22 tokens of text, 24 with [CLS] and [SEP]; choose at most 22",
         ("eval", "mlm", pretrained, "--data", text, "--context", 99)),
        ("there is no task 'prom_core_tata'; the tasks are",
         ("eval", "glue", classifier, *where, "--task", "prom_core_tata")),
        ("there is no task 'sst_3'; did you mean sst2?", ("eval", "glue", classifier, *where, "--task", "sst_3")),
        ("is there already", ("finetune", pretrained, *where, "--out", data)),
        ("fine-tuned on one task, got sst2,cola",
         ("finetune", pretrained, "--task", "sst2,cola", "--data", data, "--out", tmp_path / "x")),
        ("holds no train split of RTE",
         ("finetune", pretrained, "--task", "rte", "--data", data, "--out", tmp_path / "x")),
        ("learning rate must be above 0", ("finetune", pretrained, *where, "--out", tmp_path / "x", "--lr", 0)),
    ):  # fmt: skip
        assert sentence in refusal(*args)
    assert not (tmp_path / "x").exists()


def test_a_model_of_dna_reads_no_text(data, tmp_path):
    from layouts import write_tiny

    dna = write_tiny(tmp_path / "dna")
    assert "with_head" not in refusal("finetune", dna, "--task", "sst2", "--data", data, "--out", tmp_path / "x")
    said = refusal("eval", "glue", dna, "--task", "sst2", "--data", data)
    assert "has the head 'lm'" in said and "hyenadna cannot be fine-tuned here" in said
