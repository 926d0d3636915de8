"""Load a converted model by transformers, and let it go on from a prompt.

python examples/load_and_generate.py [MODEL]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import sparsify  # tells transformers about the model

DEMO, PROMPT = "demo/hyenadna-chr20-8k", "ACGTTTGACCATGGTACATT"

name = sys.argv[1] if sys.argv[1:] else sparsify.convert(DEMO, "out/example", taps=256, force=True)["out"]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)

inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
likeliest = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print("likeliest", tokenizer.decode(likeliest[0]))

# The same by a stream, whose price a token hardly grows with the length of what came before.
stream = model.stream()
drawn = stream.generate(inputs["input_ids"], count=20, temperature=1.0, seed=0)
print("drawn    ", tokenizer.decode(drawn[0]))
