"""A session as in a notebook, with the public names alone; what it prints is in session.txt."""

import tempfile
from pathlib import Path

import kn_bench as kn

# Load a model and cases. `fact` could be written by hand:
# kn.EditRequest(subject=..., prompt="The capital of {} is", target_true=..., target_new=...)
model = kn.load_model("tiny-gpt2")
cases = kn.load_cases("embedded", relation="P36", limit=4)
fact = cases[0].request
prompt = fact.cloze.left
print(f"{prompt} ... {fact.target_true!r}, to become {fact.target_new!r}")

# Edit the fact by a method's name, and look at what the edited model generates.
rome = kn.method("rome", model)
edit = rome.edit(fact)
print("unedited:", model.generate(prompt))
with kn.edited(model, edit):
    print("edited:  ", model.generate(prompt))
print("after:   ", model.generate(prompt))

# Evaluate the method on all cases by the six criteria.
evaluation = kn.evaluate(model, "rome", cases)
print({name: evaluation.score(name) for name in ("reliability", "generality", "symmetry")})

# Where is the fact? Knowledge neurons (Dai et al. 2022), and causal tracing (Meng et al. 2022).
located = kn.locate(model, fact)
layers = sorted({neuron.layer for neuron in located.neurons})
print(f"{len(located.neurons)} knowledge neurons in layers {layers}")
traced = kn.trace(model, fact, kinds=["hidden"])
effects = traced.indirect_effects[0]  # token, layer
token, layer = divmod(int(effects.argmax()), effects.shape[1])
print(f"P({fact.target_true}): {traced.clean:.2f}, {traced.corrupted:.2f} with a noisy subject")
print(f"the largest indirect effect: {effects.max():.2f}, at token {token}, layer {layer}")

# Save the edit, load it, and get the same answer.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "fact.safetensors"
    kn.save_edit(edit, path, provenance=rome.provenance)
    loaded = kn.load_edit(path, model=model)
with kn.edited(model, loaded):
    print("loaded:  ", model.generate(prompt))

print(evaluation.board())
