"""Every family as transformers sees it: a tiny checkpoint, its class, a trainer, a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import layouts
import layouts_lm
import layouts_m2
import torch
from helpers import ROOT
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, Trainer, TrainingArguments

from sparsify.converters import load, write_folder
from sparsify.plan import FilterPlan, Plan


def hyenadna(folder, plain=None):
    return layouts.write(folder, "hf", plain=plain)


def hyena_lm(folder, plain=None):
    return layouts_lm.write(folder, "hub's names", plain=plain, model_type="hyena_lm")


def m2_bert(folder, plain=None):
    return layouts_m2.write(folder, "safetensors mlm", plain=plain)


FAMILIES = {
    "hyenadna": (hyenadna, AutoModelForCausalLM),
    "hyena_lm": (hyena_lm, AutoModelForCausalLM),
    "m2_bert": (m2_bert, AutoModelForMaskedLM),
}


def saved(family, folder, taps):
    """A converted checkpoint."""
    p = load(FAMILIES[family][0](folder / "source"))
    kind = FilterPlan("dense") if taps is None else FilterPlan("partial", taps)
    return write_folder(folder / "out", p, Plan({site.name: kind for site in p.sites}, "some"), {})


def auto(family):
    return FAMILIES[family][1]


def ids(length=24, batch=2):
    return torch.randint(7, 11, (batch, length), generator=torch.Generator().manual_seed(1))


class Texts(torch.utils.data.Dataset):
    def __init__(self, count=12):
        self.ids = torch.randint(7, 11, (count, 16), generator=torch.Generator().manual_seed(2))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def trainer(model, out, **more):
    said = {"max_steps": 6, "save_steps": 3, "logging_steps": 6, "learning_rate": 1e-2, **more}
    arguments = TrainingArguments(
        str(out), per_device_train_batch_size=2, per_device_eval_batch_size=4, report_to=[], disable_tqdm=True,
        use_cpu=True, seed=0, lr_scheduler_type="constant", **said,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts(4))


@torch.no_grad()
def logits(model, u=None):
    return model.eval()(ids() if u is None else u).logits


def python(script: str, home: Path, **env: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds this checkout, on one thread, with its caches in `home`."""
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), **os.environ, **env}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=300)
