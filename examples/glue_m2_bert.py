"""Fine-tune an M2-BERT on SST-2, sparsify the classifier, and score both on the same examples.

python examples/glue_m2_bert.py MODEL DATA

MODEL is a masked language model or an encoder: a folder or a hub id, such as the one that `make demo-m2` trains.
DATA is a folder with sst2.train.jsonl and sst2.dev.jsonl, GLUE's TSV or parquet, or a data set on the hub.
"""

import shutil
import sys

import sparsify

if len(sys.argv) != 3:
    sys.exit(__doc__)
model, data = sys.argv[1:]

shutil.rmtree("out/sst2", ignore_errors=True)  # a fine-tune takes a new folder
tuned = sparsify.finetune(model, "sst2", data, "out/sst2", epochs=1, limit=2000, seed=1)
print(f"fine-tuned on {tuned['n']} examples, best dev {tuned['metric']} {tuned['best']['value']:.4f}")

sparsify.convert("out/sst2", "out/sst2-sparse", split=(4, 0.25), force=True)
scores = sparsify.evaluate("out/sst2-sparse", data, kind="glue", task="sst2")
print("\n".join(scores["verdict"]))
