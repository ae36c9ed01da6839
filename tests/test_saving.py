"""Edits saved and read back: the same to the bit, or refused in one sentence."""

from __future__ import annotations

import json
import math
import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kn_bench import edited
from kn_bench.cases.case import Cloze
from kn_bench.editing.edit import (
    DenseEdit,
    LookupEdit,
    LowRank,
    LowRankDeltas,
    LowRankEdit,
    MemoryEdit,
    NeuronEdit,
    NeuronScale,
    NoEdit,
    PromptEdit,
    RankFactors,
    WrapperEdit,
)
from kn_bench.editing.memories import Codebook, Memory, SideWeights
from kn_bench.editing.provenance import Provenance, settings_of
from kn_bench.editing.saving import (
    HEADER,
    EditFileError,
    load_edit,
    save_edit,
    saved_provenance,
)
from tests.tiny_models import tiny_model

SOURCE = Provenance(
    model="tiny-gpt2",
    model_hash="ab" * 32,
    method="rome",
    settings={"layer": 3, "lr": 0.5, "adjust": True, "corpus": None, "from": "swept"},
    case="pararel/P36/Canada",
    dtype="bfloat16",
    request="cd" * 32,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

floats = st.floats(allow_nan=True, allow_infinity=True)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
notes = st.dictionaries(text, st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | text)
layers = st.integers(0, 200)
sizes = st.integers(0, 4)


@st.composite
def tensors(draw, *shape):
    """Any bytes, NaN payloads and negative zeros among them, half the time strided."""
    count = 2 * math.prod(shape)
    dtype = draw(st.sampled_from(DTYPES))
    width = torch.empty((), dtype=dtype).element_size()
    data = draw(st.binary(min_size=count * width, max_size=count * width))
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    strided = draw(st.booleans())
    return (flat[::2] if strided else flat[: count // 2]).reshape(shape)


@st.composite
def low_rank(draw):
    updates = []
    for layer in draw(st.lists(layers, max_size=3)):
        rank = draw(sizes)
        updates.append(LowRank(layer, draw(tensors(draw(sizes), rank)), draw(tensors(rank, 2))))
    return LowRankEdit(tuple(updates), notes=draw(notes))


@st.composite
def neurons(draw):
    indices = st.lists(st.integers(0, 2**40), max_size=4)
    scales = st.builds(
        lambda layer, index, factor: NeuronScale(
            layer, torch.tensor(index, dtype=torch.long), factor
        ),
        layers,
        indices,
        floats,
    )
    return NeuronEdit(tuple(draw(st.lists(scales, max_size=3))), notes=draw(notes))


@st.composite
def dense(draw):
    names = draw(st.lists(text, max_size=3, unique=True))
    deltas = {name: draw(tensors(draw(sizes), 3)) for name in names}
    return DenseEdit(deltas, notes=draw(notes))


@st.composite
def factored(draw):
    factors = {}
    for name in draw(st.lists(text, max_size=3, unique=True)):
        rank = draw(sizes)
        factors[name] = RankFactors(draw(tensors(draw(sizes), rank)), draw(tensors(rank, 2)))
    return DenseEdit(LowRankDeltas(factors), notes=draw(notes))


@st.composite
def memory(draw):
    n, d_in, d_out = draw(sizes), draw(sizes), draw(sizes)
    beside: Memory
    if draw(st.booleans()):
        beside = Codebook(
            draw(tensors(n, d_in)),
            draw(tensors(n, d_out)),
            draw(tensors(n)),
            torch.tensor(draw(st.lists(st.integers(-1, 9), min_size=n, max_size=n))).long()[
                :, None
            ],
        )
    else:
        beside = SideWeights(draw(tensors(n, d_in, d_out)), draw(tensors(n)))
    return MemoryEdit(draw(text), beside, draw(st.booleans()), notes=draw(notes))


answers = st.dictionaries(
    st.builds(Cloze, text, text), text | st.lists(text).map(tuple), max_size=4
)
edits = st.one_of(
    low_rank(),
    neurons(),
    dense(),
    factored(),
    memory(),
    st.builds(PromptEdit, text, notes=notes),
    st.builds(LookupEdit, answers, notes=notes),
    st.builds(NoEdit, notes=notes),
)


def exactly(value):
    """A value with types and bytes visible: NaN equals itself, 1 differs from 1.0 and True."""
    if isinstance(value, torch.Tensor):
        flat = value.clone(memory_format=torch.contiguous_format).reshape(-1)
        raw = flat.view(torch.uint8).tolist() if flat.numel() else []
        return (value.dtype, tuple(value.shape), raw)
    if isinstance(value, dict):
        return [(exactly(k), exactly(v)) for k, v in value.items()]
    if isinstance(value, tuple) and not isinstance(value, Cloze):
        return tuple(exactly(v) for v in value)
    if hasattr(value, "__dataclass_fields__"):
        return (type(value), exactly(vars(value)))
    return (type(value), repr(value))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("edits")
    return folder / "edit.safetensors"


@given(edit=edits, for_all=st.booleans())
def test_an_edit_comes_back_as_it_was(file, edit, for_all):
    edit = replace(edit, for_all=for_all)
    save_edit(edit, file, provenance=SOURCE)
    assert exactly(load_edit(file)) == exactly(edit)
    assert saved_provenance(file) == SOURCE
    assert [path.name for path in file.parent.iterdir()] == [file.name]


RANK_ONE = LowRankEdit(
    (LowRank(1, torch.arange(3.0)[:, None], torch.ones(1, 2)),), notes={"loss": 0.25}
)


@given(data=st.data())
def test_a_file_with_a_changed_byte_never_holds_another_edit(file, data):
    save_edit(RANK_ONE, file, provenance=SOURCE)
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    refusal = ""
    try:
        loaded, provenance = load_edit(file), saved_provenance(file)
    except EditFileError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{file}: expected ")
        assert "\n" not in refusal
    else:  # a space of padding may be another space
        assert (exactly(loaded), provenance) == (exactly(RANK_ONE), SOURCE)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_off_is_refused(file, share):
    save_edit(RANK_ONE, file, provenance=SOURCE)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EditFileError, match="expected a safetensors file that save_edit wrote"):
        load_edit(file)


def test_a_header_rewritten_around_the_tensors_is_refused(file):
    save_edit(RANK_ONE, file, provenance=SOURCE)
    content = file.read_bytes()
    moved = content.replace(rb"\"layers\":[1]", rb"\"layers\":[0]")
    assert moved != content
    file.write_bytes(moved)
    with pytest.raises(EditFileError, match="expected the SHA-256 that was written with the edit"):
        load_edit(file)


def test_what_is_no_saved_edit_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(EditFileError, match="there is none"):
        load_edit(tmp_path / "none.safetensors")
    with pytest.raises(EditFileError, match="there is none"):
        load_edit(tmp_path)
    weights = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, weights)
    with pytest.raises(EditFileError, match="a safetensors file of another kind"):
        load_edit(weights)
    newer = tmp_path / "newer.safetensors"
    save_file({}, newer, {HEADER: json.dumps({"format": 3})})
    with pytest.raises(EditFileError, match="format 2 or older, and this one has 3; update"):
        load_edit(newer)
    foreign = tmp_path / "foreign.safetensors"
    save_file({}, foreign, {HEADER: json.dumps({"format": 1, "edit": {"type": "pickle"}})})
    with pytest.raises(EditFileError, match="expected the header of an edit"):
        load_edit(foreign)


def test_only_what_an_earlier_version_cannot_read_is_of_a_newer_format(tmp_path):
    u, v = torch.ones(300, 2), torch.ones(2, 200)
    sizes = []
    for deltas, version in (({"a": u @ v}, 1), (LowRankDeltas({"a": RankFactors(u, v)}), 2)):
        save_edit(DenseEdit(deltas), tmp_path / "e", provenance=SOURCE)
        with safe_open(tmp_path / "e", framework="pt") as stored:
            assert json.loads(stored.metadata()[HEADER])["format"] == version
        sizes.append((tmp_path / "e").stat().st_size)
    header = 1000
    assert sizes[1] < 4 * 2 * (300 + 200) + header < 4 * 300 * 200 < sizes[0]


def test_an_edit_that_was_saved_before_a_field_came_is_read(tmp_path):
    told = (
        '{"format":1,"edit":{"type":"prompt","prefix":"Hi."},"notes":{"x":1.5},"model":"tiny-gpt2",'
        f'"model_hash":"{"a" * 64}","method":"rome","settings":{{"a":1,"b":{{"number":"inf"}}}},'
        '"case":"P36/1","kn_bench":"0.1.0","sha256":"'
        '87419ea7e921a4173c1fe091bd666949e8d3559e13284a1a28947751db46800f"}'
    )
    save_file({}, tmp_path / "old", {HEADER: told})
    assert load_edit(tmp_path / "old") == PromptEdit("Hi.", notes={"x": 1.5})
    assert saved_provenance(tmp_path / "old") == Provenance(
        model="tiny-gpt2", model_hash="a" * 64, method="rome", settings={"a": 1, "b": math.inf},
        case="P36/1", kn_bench="0.1.0",
    )  # fmt: skip


def test_code_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="WrapperEdit: expected an edit that is data"):
        save_edit(WrapperEdit(lambda hf: nullcontext()), tmp_path / "e", provenance=SOURCE)

    class Mine(PromptEdit):
        pass

    with pytest.raises(ValueError, match="Mine: expected an edit that is data"):
        save_edit(Mine("a"), tmp_path / "e", provenance=SOURCE)
    assert not list(tmp_path.iterdir())


def test_notes_that_are_no_plain_values_are_refused(tmp_path):
    edit = NoEdit(notes={"curve": object()})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="expected notes and settings that JSON can hold"):
        save_edit(edit, tmp_path / "e", provenance=SOURCE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "source"),
    [
        *((NoEdit(notes={"a": value}), {}) for value in (  # type: ignore[dict-item]
            [1, 2], (1, 2), {"b": 1}, {"number": "nan"}, np.ones(2), torch.ones(2), None.__class__
        )),
        (NoEdit(notes=None), {}),  # type: ignore[arg-type]
        (PromptEdit("a"), {"settings": {"x": [1, 2]}}),
        (PromptEdit("a"), {"settings": {"x": {"number": "inf"}}}),
        (PromptEdit("a"), {"model": None, "model_hash": 3}),
        (PromptEdit("a"), {"case": None}),
        (PromptEdit(None), {}),  # type: ignore[arg-type]
        (LookupEdit({Cloze("a"): 3}), {}),  # type: ignore[dict-item]
        (DenseEdit({"w": [1, 2]}), {}),  # type: ignore[dict-item]
        (DenseEdit({"w": torch.eye(2).to_sparse()}), {}),
        (NeuronEdit((NeuronScale(0, [1], 2.0),)), {}),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_could_not_be_read_back_is_refused_and_a_good_file_kept(tmp_path, edit, source):
    path = tmp_path / "e"
    save_edit(RANK_ONE, path, provenance=SOURCE)
    with pytest.raises(ValueError, match=f"^{type(edit).__name__}: expected ") as refused:
        save_edit(edit, path, provenance=replace(SOURCE, **source))
    assert "\n" not in str(refused.value)
    assert exactly(load_edit(path)) == exactly(RANK_ONE)
    assert [file.name for file in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(0.5)])
def test_a_number_of_another_library_is_a_plain_note(tmp_path, value):
    save_edit(NoEdit(notes={"a": value}), tmp_path / "e", provenance=SOURCE)
    assert exactly(load_edit(tmp_path / "e").notes) == exactly({"a": value.item()})


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path):
    with pytest.raises(ValueError, match="expected the path of a file; name one"):
        save_edit(NoEdit(), path, provenance=SOURCE)


def test_an_edit_of_a_model_that_holds_another_is_told_so(tmp_path):
    model = tiny_model("gpt2")
    own = replace(SOURCE, model_hash=model.content_hash)
    save_edit(RANK_ONE, tmp_path / "e", provenance=own)
    update = LowRank(0, torch.ones(model.d_mlp, 1), torch.ones(1, model.d_model))
    refused = pytest.raises(EditFileError, match="without an edit, and one is in force")
    with edited(model, LowRankEdit((update,))), refused:
        load_edit(tmp_path / "e", model=model)
    assert exactly(load_edit(tmp_path / "e", model=model)) == exactly(RANK_ONE)


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    whole = torch.arange(12.0).reshape(4, 3)
    edit = LowRankEdit((LowRank(0, whole[:, :1], whole[:1]), LowRank(1, whole[:, :1], whole[:1])))
    save_edit(edit, tmp_path / "e", provenance=SOURCE)
    assert exactly(load_edit(tmp_path / "e")) == exactly(edit)


def test_an_edit_of_another_model_is_refused(tmp_path):
    model = tiny_model("gpt2")
    path = tmp_path / "e"
    save_edit(RANK_ONE, path, provenance=SOURCE)
    with pytest.raises(EditFileError, match="was made for tiny-gpt2"):
        load_edit(path, model=model)
    save_edit(RANK_ONE, path, provenance=replace(SOURCE, model_hash=model.content_hash))
    assert exactly(load_edit(path, model=model)) == exactly(RANK_ONE)


def test_settings_are_the_fields_of_a_method():
    @dataclass
    class Inner:
        t: float = 0.2
        lengths: tuple[int, ...] = (5, 10)

    @dataclass
    class Method:
        factor: int = 2
        locating: Inner = field(default_factory=Inner)

    class Holder:
        settings = Inner()

    expected = {"t": 0.2, "lengths": "(5, 10)"}
    assert settings_of(Holder()) == expected
    nested = {f"locating.{name}": value for name, value in expected.items()}
    assert settings_of(Method()) == {"factor": 2, **nested}
    assert settings_of(object()) == {}


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_saved_edit_is_as_private_as_other_new_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        save_edit(PromptEdit("a"), tmp_path / "edit.safetensors", provenance=SOURCE)
    finally:
        os.umask(before)
    assert (tmp_path / "edit.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_disk_is_told_of_and_leaves_nothing(tmp_path, monkeypatch):
    """Safetensors has an error of its own for it."""

    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("kn_bench.editing.saving.save_file", full)
    with pytest.raises(OSError, match=r"can be written \(I/O error: No space left on device\)"):
        save_edit(PromptEdit("a"), tmp_path / "edit.safetensors", provenance=SOURCE)
    assert not list(tmp_path.iterdir())
