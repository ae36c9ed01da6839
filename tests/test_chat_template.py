"""A chat model asked by its template: the template's tokens stand in front of every text."""

import hashlib
import json
import shutil

import pytest
import torch

from kn_bench.cases import sources
from kn_bench.measure.encoding import EncodedCase, encode_cases
from kn_bench.model import embedded
from kn_bench.model.chat_template import REQUEST, digest, has_template, sentence
from kn_bench.model.context_templates import contexts
from kn_bench.model.loading import load_model
from kn_bench.model.loading_tokens import load_tokens
from kn_bench.model.tokens import Span, last_token_of
from kn_bench.results.beside import differing
from kn_bench.results.manifest import differences, read_manifest
from kn_bench.testing.models import Models
from kn_bench.testing.options import Options

TEMPLATE = (
    "{% for m in messages %}the {{ m['role'] }} said {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}the answer was {% endif %}"
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """tiny-gpt2 as a folder of a chat model."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(embedded.folder("tiny-gpt2"), folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def lm(chat):
    return load_model(str(chat), chat_template=True)


def start_of(chat):
    """The ids of the template, by the tokenizer alone."""
    plain = load_tokens(str(chat))
    return plain.encode(f"the user said {REQUEST}\nthe answer was ").ids


def test_every_text_begins_with_the_template_which_lies_outside_of_it(chat, lm):
    start, text = start_of(chat), "The capital of Canada is"
    plain = load_tokens(str(chat)).encode(text)
    encoded = lm.tokens.encode(text)
    assert start
    assert encoded.ids == (*start, *plain.ids)
    assert encoded.offsets == (*[(0, 0)] * len(start), *plain.offsets)
    assert lm.tokens.encode_many([text]) == [encoded.ids]
    assert last_token_of(encoded, 15, 21) == len(start) + last_token_of(plain, 15, 21)
    (spanned,) = lm.tokens.encode_spans([text], [Span(14, 15, 21)])
    assert spanned.first == len(start) + 3
    assert lm.tokens.content_hash != load_tokens(str(chat)).content_hash
    assert load_tokens(str(chat), chat_template=True).content_hash == lm.tokens.content_hash


def test_answers_are_those_of_the_text_with_the_template_written_out(chat, lm):
    base = load_model(str(chat))
    prompt = "The capital of Canada is"
    written = f"the user said {REQUEST}\nthe answer was {prompt}"
    ids, whole = lm.tokens.encode(prompt).ids, base.tokens.encode(written).ids
    assert ids != base.tokens.encode(prompt).ids
    if ids == whole:  # the tokenizer may join the template's last space to the prompt
        with torch.no_grad():
            ours, theirs = (m.hf(torch.tensor([ids])).logits for m in (lm, base))
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        expected = base.hf(torch.tensor([ids])).logits[0, -1]
        assert torch.equal(lm.hf(torch.tensor([ids])).logits[0, -1], expected)


def test_probes_and_contexts_carry_it_too(chat, lm):
    start = start_of(chat)
    (case,) = sources.load("embedded", limit=1, relations=["P36"]).cases
    (encoded,) = encode_cases([case], lm.tokens)
    (plain,) = encode_cases([case], load_tokens(str(chat)))
    assert isinstance(encoded, EncodedCase)
    assert isinstance(plain, EncodedCase)
    assert [p.prompt_ids for p in encoded.probes] == [(*start, *p.prompt_ids) for p in plain.probes]
    assert [p.answer_position for p in encoded.probes] == [
        len(start) + p.answer_position for p in plain.probes
    ]
    assert all(isinstance(text, str) for text in contexts(lm))


def test_the_header_says_how_a_chat_model_is_measured(chat):
    assert has_template(str(chat))
    assert not has_template("tiny-gpt2")
    assert sentence("tiny-gpt2", chosen=False) == ""
    assert "measured as a base model" in sentence(str(chat), chosen=False)
    assert REQUEST in sentence(str(chat), chosen=True)


def test_what_a_template_renders_is_recorded_and_tells_runs_apart(chat, bench):
    """Two days of a template that states the date."""
    bench.pytester.makeconftest("")  # no toys
    folder, manifests = bench.path / "chat", {}
    shutil.copytree(chat, folder)
    asked = ("--model=chat", "--chat-template", "--method=none", "--relation=P36", "--limit=1",
             "-k", "reliability")  # fmt: skip
    for date in ("1 May", "2 May"):
        (folder / "chat_template.jinja").write_text(f"it is {date}\n{TEMPLATE}")
        result = bench.run(*asked, f"--run={date[0]}")
        assert result.ret == 0, result.stdout.str()
        manifests[date] = read_manifest(bench.path / "reports" / "runs" / date[0])
    (clause,) = differences(*manifests.values())  # of which a resumed run or a shard has none
    assert clause.startswith("options: chat template of chat ")
    assert differing(manifests.values(), "chat") == ("chat template of chat",)
    plain = load_tokens(str(chat))
    written = plain.encode(f"it is 2 May\nthe user said {REQUEST}\nthe answer was ").ids
    expected = hashlib.sha256(repr(written).encode()).hexdigest()
    assert manifests["2 May"].options["chat template of chat"] == expected


def test_a_template_that_renders_otherwise_as_the_run_goes_on_is_told(chat):
    templates = {str(chat): digest(load_tokens(str(chat), chat_template=True))}
    options = Options(chat_template=True)
    assert Models(options, "cpu", {}, templates=templates).model(str(chat)).name == str(chat)
    gone = Models(options, "cpu", {}, templates=dict.fromkeys(templates, "0" * 64))
    with pytest.raises(ValueError, match=r"expected the text that the template of .* rendered"):
        gone.model(str(chat))


def test_a_template_in_the_tokenizers_settings_counts(tmp_path):
    folder = tmp_path / "chat"
    shutil.copytree(embedded.folder("tiny-gpt2"), folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}))
    assert has_template(str(folder))
    file.write_text("[")
    assert not has_template(str(folder))


@pytest.mark.parametrize("template", ["{{ raise_exception('no user') }}", "{% broken"])
def test_a_template_that_fails_is_one_sentence(chat, tmp_path, template):
    folder = tmp_path / "chat"
    shutil.copytree(chat, folder)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"--chat-template: the template of .* fails \(.*\)$"):
        load_model(str(folder), chat_template=True)


def test_a_model_without_one_is_refused_before_the_run(bench):
    result = bench.run("--model=tiny-gpt2", "--chat-template", "--limit=1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    sentence = "--chat-template: the tokenizer of tiny-gpt2 has no chat template; leave the option"
    result.stderr.fnmatch_lines([f"*{sentence}*"])
    with pytest.raises(ValueError, match="no chat template"):
        load_model("tiny-bert", chat_template=True)
