"""Where an answer stands in a user's own text, and what stands beside it: asked as written."""

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kn_bench import load_model
from kn_bench.cases.case import Cloze, EditRequest, Probe
from kn_bench.cases.sources import content_hash, jsonl
from kn_bench.commands import data
from kn_bench.editing.answer_rows import tuned_row
from kn_bench.editing.edit import LookupEdit
from kn_bench.editing.finetuning import TunedRow
from kn_bench.editing.provenance import Provenance
from kn_bench.editing.rome.encoding import encode_problem
from kn_bench.editing.saving import load_edit, save_edit
from kn_bench.measure.encoding import (
    EncodedCase,
    EncodedProbe,
    EncodedRequest,
    encode_case,
    encode_probe,
    encode_request,
)
from kn_bench.measure.engine import Engine
from kn_bench.results.texts import CaseText, read_texts, text_of, with_gap, write_texts
from tests.made_tokenizers import CAUSAL, tokens

FACT: dict[str, Any] = {"subject": "Canada", "target_true": "Ottawa", "target_new": "Paris"}
QUOTED = 'The capital of {} is "[Y]".'

WRITTEN = (
    'The capital of {} is "[Y]".', "The capital of {} ([Y])", "{}: capital=[Y]",
    "{}: capital = [Y]", "{} costs $[Y]", "{} costs $ [Y]", "In {}, capital:\n[Y]",
    "In {}, capital:\t[Y]", "La capitale de {}, c'est l'[Y]", "{}: city-[Y]", "“[Y]” is in {}",
    "{}: « [Y] »", "{}: «[Y]»", "Of {} [[Y]]", "In {}, [Y]’s people", "[Y]% of {}",
    "{} is ruled by [Y]ans.", "{}的首都是[Y]。", "{}的首都是 [Y] 。", "{}ไทย[Y]ไทย",
    "{} is  [Y] .", "[Y] is the capital of {}.", "[Y]'s in {}", "The capital of {} is [Y].",
)  # fmt: skip
ENDS = {
    "": " ", '"': "", ' "': "", ' "here" or': " ", ' "here"': " ", " 'here'": " ", " '": "",
    " (": "", " [": "", " “": "", " “here”": " ", " ‘": "", " «": "", " « here »": " ", " »": "",
    " »here«": " ", " „": "", " „here“": " ", " $": "", " US$": "", " #": "", " C#": " ",
    " =": " ", "=": "", " -": " ", " city-": "", " and/": "", " --": " ", " l'": "", " dell’": "",
    " the dogs'": " ", " `": "", "?": " ", ":": " ", "的首都是": "", ":\n": "", ":\t": "",
    " ": "", ' " ': "",
}  # fmt: skip
"""The end of a prompt, and what stands between it and the answer."""


def load(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({**FACT, **row}) + "\n" for row in rows), encoding="utf-8")
    return jsonl.load(path).cases


def asked(case, criterion, kind=None):
    return [p.cloze for p in case.probes if p.criterion == criterion and kind in (None, p.kind)]


@pytest.mark.parametrize("text", WRITTEN)
def test_what_stands_beside_the_place_of_an_answer_is_asked_as_written(tmp_path, text):
    everywhere = {
        "paraphrases": [text],
        "synonyms": [text, {"prompt": text, "target_true": "O", "target_new": "P"}],
        "neighbours": [{"prompt": text.replace("{}", "Peru"), "answer": "Lima"}],
        "inverse": {"prompt": text, "displaced": "France"},
    }
    (case,) = load(tmp_path, {"prompt": text, **everywhere})
    canada = text.replace("{}", "Canada")
    ours = [case.request.cloze, *(query.cloze for query in case.request.queries)]
    ours += [*asked(case, "reliability"), *asked(case, "generality"), *asked(case, "synonym")]
    assert len(ours) >= 6
    assert {cloze.fill("[Y]") for cloze in ours} == {canada}
    assert [c.fill("[Y]") for c in asked(case, "locality", "same_relation")] == [
        text.replace("{}", "Peru")
    ]
    inverse = [cloze.fill("[Y]") for cloze in asked(case, "symmetry")]
    assert inverse == [text.replace("{}", name) for name in ("Paris", "Ottawa")]


@pytest.mark.parametrize(("end", "space"), ENDS.items())
def test_no_space_is_set_after_what_opens(tmp_path, end, space):
    prompt = f"The capital of {{}} is{end}"
    (case,) = load(tmp_path, {"prompt": prompt, "paraphrases": [prompt], "suffix": ", they say."})
    before = f"The capital of Canada is{end}{space}"
    assert case.request.cloze.fill("▁") == f"{before}▁, they say."
    assert asked(case, "reliability") == [case.request.cloze]
    assert [c.fill("▁") for c in asked(case, "generality")] == [
        f"{before}▁" if end == "?" else f"{before}▁."
    ]
    fact = EditRequest(**FACT, prompt=prompt)
    assert fact.cloze.fill("▁") == f"{before}▁."


@pytest.mark.parametrize(
    ("prompt", "suffix", "whole"),
    [
        ('In {} it is "', '", they say.', 'In Canada it is "▁", they say.'),
        ("In {}", '"here", they say.', 'In Canada ▁ "here", they say.'),
        ("In {}, with", "’s people", "In Canada, with ▁’s people"),
        ("In {}, some", "% are", "In Canada, some ▁% are"),
        ("In {} „", "“.", "In Canada „▁“."),
        ("In {} «", "» it is", "In Canada «▁» it is"),
        ("In {}", "(they say)", "In Canada ▁ (they say)"),
        ("In {}", " they say", "In Canada ▁ they say"),
    ],
)
def test_no_space_is_set_before_what_closes(tmp_path, prompt, suffix, whole):
    (case,) = load(tmp_path, {"prompt": prompt, "suffix": suffix})
    assert case.request.cloze.fill("▁") == asked(case, "reliability")[0].fill("▁") == whole


def test_the_usual_spaces_are_no_other_question(tmp_path):
    prompts = ("The capital of {} is", "The capital of {} is ", "The capital of {} is [Y].")
    cases = [load(tmp_path, {"prompt": prompt})[0] for prompt in prompts]
    assert {case.request.prompt for case in cases} == {"The capital of {} is"}
    assert len({content_hash([case]) for case in cases}) == 1
    # the hash of data is over this text: what it was before a cloze had a gap of its own
    assert repr(cases[0].request.cloze) == "Cloze(left='The capital of Canada is', right='.')"


def test_two_spacings_are_two_facts(tmp_path):
    cases = load(tmp_path, {"prompt": QUOTED}, {"prompt": 'The capital of {} is " [Y].'})
    assert len({case.id for case in cases}) == len(cases) == 2
    assert len({case.request.content_hash for case in cases}) == 2
    assert len({content_hash([case]) for case in cases}) == 2
    assert len({case.request.cloze for case in cases}) == 2


def test_a_request_says_where_its_answer_stands():
    fact = EditRequest(**FACT, prompt="Le roi de {} vit à l'[Y]", suffix="-même")
    assert fact.cloze == Cloze("Le roi de Canada vit à l'", "-même", "")
    for prompt, suffix in ((QUOTED, ""), ("{} is", "[Y]."), ("{} [Y] [Y]", ".")):
        with pytest.raises(ValueError, match=r"expected \[Y\] at the prompt's end or not at all"):
            EditRequest(**FACT, prompt=prompt, suffix=suffix)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("text", [QUOTED, "The capital of {}:\n[Y]", "{} ([Y])", "{} = [Y]"])
def test_a_causal_model_reads_the_text_as_written(tmp_path, name, text):
    window = tokens(name)
    (case,) = load(tmp_path, {"prompt": text})
    encoded = encode_case(case, window)
    assert isinstance(encoded, EncodedCase)
    before = text.partition("[Y]")[0].replace("{}", "Canada")
    ids = window.tokenizer(before + "Paris")["input_ids"]
    ids = tuple(ids[: len(ids) - window.n_closing])
    probe = encoded.probes[0]
    assert probe.expected.ids == ids == (*probe.prompt_ids, *probe.expected.targets)
    request = encode_request(case.request, window)
    assert isinstance(request, EncodedRequest)
    assert (request.prompt_ids, request.new_ids) == (probe.prompt_ids, probe.expected.targets)
    row = tuned_row(case.request, window, teacher_forced=True)
    assert isinstance(row, TunedRow)
    assert (row.ids, row.targets) == (ids[:-1], probe.expected.targets)
    rome = encode_problem(case.request, window, ["Well. "]).rows
    assert (rome[0].ids, rome[0].targets) == (ids[:-1], probe.expected.targets)
    # behind a prefix, as a prompt edit asks it
    behind = encode_probe(probe.probe, window, "New fact.")
    assert isinstance(behind, EncodedProbe)
    ids = window.tokenizer(f"New fact. {before}Paris")["input_ids"]
    assert behind.expected.ids == tuple(ids[: len(ids) - window.n_closing])


def test_an_answer_that_begins_a_text_follows_a_prefix_after_a_space():
    window = load_model("tiny-bert").tokens
    probe = Probe("generality/0", "generality", Cloze.parse("[Y]’s in Canada."), "Paris", "Rome")
    behind = encode_probe(probe, window, "New fact.")
    assert isinstance(behind, EncodedProbe)
    whole = window.tokenizer("New fact. Paris’s in Canada.")["input_ids"]
    assert [i for i in behind.prompt_ids if i != window.mask_id] == [
        i for i in whole if i not in behind.expected.targets
    ]


def test_a_masked_model_reads_the_text_as_written(tmp_path):
    window = load_model("tiny-bert").tokens
    (case,) = load(tmp_path, {"prompt": 'The capital is "[Y]" in {}.', "target_true": "Rome"})
    encoded = encode_request(case.request, window)
    assert isinstance(encoded, EncodedRequest)
    assert encoded.subject_position is not None
    whole = window.tokenizer('The capital is "Paris" in Canada.')["input_ids"]
    filled = list(encoded.prompt_ids)
    filled[encoded.answer_position : encoded.answer_position + 1] = encoded.new_ids
    assert filled == whole
    canada = window.tokenizer(" Canada", add_special_tokens=False)["input_ids"]
    at = encoded.subject_position
    assert list(encoded.prompt_ids[at + 1 - len(canada) : at + 1]) == canada


def test_log_probabilities_are_of_the_text_as_written(tmp_path):
    lm = load_model("tiny-gpt2")
    (case,) = load(tmp_path, {"prompt": QUOTED})
    encoded = encode_case(case, lm.tokens)
    assert isinstance(encoded, EncodedCase)
    (answer,) = Engine(lm).before(encoded.probes[:1]).values()
    start = len(lm.tokens.tokenizer('The capital of Canada is "')["input_ids"])
    ids = torch.tensor([lm.tokens.tokenizer('The capital of Canada is "Paris')["input_ids"]])
    with torch.no_grad():
        log_probs = lm.hf(ids).logits[0].log_softmax(-1)
    wanted = sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1]))
    assert answer.answer.log_prob_expected == pytest.approx(wanted, abs=1e-4)


def test_data_shows_what_is_asked(tmp_path):
    load(tmp_path, {"prompt": QUOTED, "paraphrases": ["{}'s capital:\n[Y]", "{} ("]})
    printed = CliRunner().invoke(data.app, [str(tmp_path / "mine.jsonl")]).output
    assert 'The capital of Canada is "▁". →' in printed
    assert "Canada's capital:\\n▁ →" in printed
    assert "Canada (▁. →" in printed


def test_a_log_keeps_the_place_and_an_old_one_is_read(tmp_path):
    cases = load(tmp_path, {"prompt": QUOTED}, {"prompt": "{} is ("}, {"prompt": "{} is"})
    write_texts(tmp_path, cases)
    read = list(read_texts(tmp_path))
    assert read == [text_of(case) for case in cases]
    shown = [with_gap(text.prompt, text.suffix) for text in read]
    assert shown == ['The capital of {} is "___".', "{} is (___.", "{} is ___."]
    probes = [with_gap(text.probes[0].left, text.probes[0].right) for text in read]
    assert probes == [text.replace("{}", "Canada") for text in shown]
    # as it was written before the place was marked
    assert isinstance(read[2], CaseText)
    assert (read[2].prompt, read[2].suffix) == ("{} is", ".")
    assert (read[2].probes[0].left, read[2].probes[0].right) == ("Canada is", ".")


def test_a_saved_edit_keeps_the_place(tmp_path):
    clozes = (Cloze("It costs $", "."), Cloze("It costs $", ".", ""), Cloze("it is", " .", " "))
    edit = LookupEdit({cloze: f"answer {i}" for i, cloze in enumerate(clozes)})
    save_edit(
        edit, tmp_path / "edit.safetensors", provenance=Provenance(model="m", model_hash="ab")
    )
    loaded = load_edit(tmp_path / "edit.safetensors")
    assert isinstance(loaded, LookupEdit)
    assert loaded.answers == edit.answers
