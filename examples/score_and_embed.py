"""Score a variant by its log-likelihood ratio, and embed two regions.

python examples/score_and_embed.py [MODEL]
"""

import sys

import torch

import sparsify

MODEL = sys.argv[1] if sys.argv[1:] else "demo/hyenadna-chr20-8k"
REFERENCE = "ACGTTTGACCATGGTACATTTACGATCAGGCATTCAGGTTAACCGATAC"
POSITION, ALT = 24, "G"

p = sparsify.load(MODEL)  # under its plan, if it has one


def token_ids(sequences: list[str]) -> torch.Tensor:
    """Ids of sequences of one length: (batch, length)."""
    return torch.tensor([p.tokenizer.encode(sequence) for sequence in sequences])


def log_likelihoods(sequences: list[str]) -> torch.Tensor:
    """Sum over all bases but the first, in nats: (batch,) float64."""
    ids = token_ids(sequences)
    log_p = p.model(ids)[:, :-1].double().log_softmax(-1)
    return log_p.gather(-1, ids[:, 1:, None])[..., 0].sum(-1)


variant = REFERENCE[:POSITION] + ALT + REFERENCE[POSITION + 1 :]
reference, alternative = log_likelihoods([REFERENCE, variant])
print(f"{REFERENCE[POSITION]}{POSITION}{ALT}: log-likelihood ratio {alternative - reference:+.3f} nats")

states = p.model.hidden(token_ids([REFERENCE, variant]))  # (batch, length, width)
embeddings = states.mean(1)
similarity = torch.nn.functional.cosine_similarity(embeddings[0], embeddings[1], dim=0)
print(f"embeddings {tuple(embeddings.shape)}, cosine similarity {similarity:.4f}")
