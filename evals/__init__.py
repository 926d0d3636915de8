"""What a sparse model costs and what it gains, next to the dense one on the same tokens.

data: documents and windows.  quality: perplexity, KL, agreement.  mlm: masked tokens.  texts: either of the two.
causality: does the model read the future?  throughput: paired timings.  results: the numbers with their conditions, as
JSON.  glue_data, metrics, paired, glue: GLUE's tasks, their figures, tests on the same examples, and scores.
retrieval: sentence embeddings.  finetune: a short training that survives interruptions.

An eval sees a model as a function from token ids to logits and never learns its family.
"""

from collections.abc import Callable

from torch import Tensor

Logits = Callable[[Tensor], Tensor]  # ids (B, L) int64 on the CPU -> logits (B, L, V), any float dtype, any device
