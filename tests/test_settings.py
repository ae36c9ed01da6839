"""Settings: presets, --preset and --set, and what is refused before a run."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kn_bench.editing import builtin
from kn_bench.editing import presets as presets_module
from kn_bench.editing.presets import (
    Preset,
    PresetError,
    builtin_presets,
    preset_for,
    read_presets,
    refuse_unused,
    used,
)
from kn_bench.editing.registry import (
    RegistryError,
    expand,
    marked,
)
from kn_bench.editing.settings import (
    LAYERS,
    Choices,
    SettingError,
    check_assignment,
    checked_choices,
    parameters,
    parse_assignment,
    recorded,
    settings_for,
)
from kn_bench.edits.ft import FtLSettings
from kn_bench.edits.lora import LoraSettings
from kn_bench.edits.rome import RomeSettings
from kn_bench.edits.ultraedit import UltraEditSettings
from kn_bench.model import loading
from kn_bench.model.loading import load_model, load_outline
from kn_bench.results.log import LOG
from kn_bench.testing.models import refuse_unfit
from tests.conftest import PLUGINS
from tests.tiny_models import tiny_model


def model(name="tiny-gpt2", layers=4, family="gpt2"):
    shape = tiny_model(family)
    return SimpleNamespace(
        name=name, n_layers=layers, architecture=shape.architecture, tokens=shape.tokens
    )


def specs():
    modules = builtin.modules()
    return {spec.name: spec for module in modules for spec in marked(module)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("rome.v_lr=2", 2.0),
        ("rome.v_lr=2e-1", 0.2),
        ("rome.mom2_adjustment=false", False),
        ("rome.mom2_n_tokens=none", None),
        ("rome.k_p_from=mean", "mean"),
        ("rome.context_template_length_params=[[5, 2], [10, 1]]", ((5, 2), (10, 1))),
        ("ft-l.layers=0,1", (0, 1)),
    ],
)
def test_values_are_read_in_their_parameters_type(text, value):
    method = text.partition(".")[0]
    cls = {"rome": RomeSettings, "ft-l": FtLSettings}[method]
    choices = checked_choices([text], (), {method: cls})
    made: Any = settings_for(method, cls, model(), choices)
    name = choices.assignments[0].parameter
    assert getattr(made, name) == value
    assert type(getattr(made, name)) is type(value)
    assert made.settings_from.endswith(f"; set: {name}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rome", "--set 'rome': expected METHOD.PARAMETER=VALUE, such as memit.v_lr=0.1"),
        ("rome.v_lr", "--set 'rome.v_lr': expected METHOD.PARAMETER=VALUE"),
        (
            "memit.v_lr=1",
            "'memit' is not among the methods of this run (rome, ft-l, none); name it",
        ),
        (
            "none.x=1",
            "--set 'none.x=1': expected a method with parameters, none has none; leave it out",
        ),
        ("rome.lr=1", "rome has no parameter 'lr'; expected one of clamp_norm_factor, context_"),
        ("rome.v_lr=fast", "rome.v_lr is of type float: expected float, got str"),
        ("rome.layer=1.5", "rome.layer is of type int: expected int, got float"),
        ("rome.u_from=last", "rome.u_from is of type Literal['bare', 'mean']: invalid enum value"),
        ("rome.settings_from=me", "rome has no parameter 'settings_from'"),
        (
            "ft-l.layers=[]",
            "ft-l.layers is []: expected one layer or several, ascending, each once",
        ),
        ("ft-l.layers=[1,1]", "ft-l.layers is [1, 1]: expected one layer or several, ascending"),
        ("ft-l.layers=2,1", "ft-l.layers is [2, 1]: expected one layer or several, ascending"),
    ],
)
def test_what_cannot_be_set_is_one_sentence(text, sentence):
    with pytest.raises(SettingError) as error:
        checked_choices([text], (), {"rome": RomeSettings, "ft-l": FtLSettings, "none": None})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_later_ones_win_and_say_so(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('methods = ["rome"]\n[models.tiny-gpt2]\nlayer = 2\nv_lr = 7\n')
    plain = settings_for("rome", RomeSettings, model())
    assert (plain.layer, plain.v_lr, plain.settings_from) == (0, 2.0, "rome.toml for tiny-gpt2")
    mine = read_presets(file)
    theirs = settings_for("rome", RomeSettings, model(), Choices(presets=mine))
    assert (theirs.layer, theirs.v_lr, theirs.stop_loss) == (2, 7.0, plain.stop_loss)
    assert theirs.settings_from == "mine.toml for tiny-gpt2"
    own = Choices((parse_assignment("rome.layer=3"),), mine)
    assert settings_for("rome", RomeSettings, model(), own).layer == 3
    assert "layer=3" in str(recorded(settings_for("rome", RomeSettings, model(), own))["settings"])
    with pytest.raises(SettingError, match="layer 3: tiny-gpt2 has layers 0 to 1; set others"):
        settings_for("rome", RomeSettings, model(layers=2), own)


def test_the_embedded_llama_is_edited_by_what_its_preset_was_swept_with():
    """What the shape of a Llama suggests for the decay came later than that sweep."""
    swept = settings_for("rome", RomeSettings, model("tiny-llama", family="llama"))
    assert (swept.v_lr, swept.stop_loss, swept.v_weight_decay) == (4.0, 0.25, 0.5)
    another = model("another-llama", family="llama")
    assert settings_for("rome", RomeSettings, another).v_weight_decay == 1e-3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = [", "expected a TOML file of presets"),
        ("[models.m]\nlayer = 1\n", "expected methods = "),
        ('methods = ["rome"]\nmodels = 3\n', "expected methods = "),
        ('methods = ["rome"]\n[models]\nm = 3\n', "expected a table"),
    ],
)
def test_a_file_that_is_no_preset_is_one_sentence(tmp_path, text, sentence):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(PresetError, match=sentence):
        read_presets(file)
    with pytest.raises(PresetError, match="expected a TOML file"):
        read_presets(tmp_path / "nothing.toml")


def test_a_presets_values_are_checked_before_the_run(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('methods = ["rome"]\n[models.m]\nlayers = [1]\n')
    with pytest.raises(SettingError, match=r"--preset mine\.toml: rome has no parameter 'layers'"):
        checked_choices((), read_presets(file), {"rome": RomeSettings})


def test_every_preset_that_comes_with_the_package_fits_its_methods():
    known = specs()
    for preset in builtin_presets():
        for method in preset.methods:
            cls = known[method].settings
            assert cls is not None, (preset.origin, method)
            checked_choices((), [preset], {method: cls})
            # every value is of a parameter that this method itself has
            assert set(preset.values) <= set(parameters(cls)), (preset.origin, method)
        assert preset.source, f"{preset.origin} does not say where {preset.model} comes from"


def test_the_longest_beginning_of_a_models_name_wins():
    def preset(name, **values):
        return presets_module.Preset(("m",), name, values, "", "")

    mine = (preset("gpt2", a=1), preset("gpt2-xl", a=2))
    assert preset_for("m", "openai-community/gpt2-xl@main", mine) == mine[1]
    assert preset_for("m", "gpt2-medium", mine) == mine[0]
    assert preset_for("m", "llama", mine) is None
    assert preset_for("other", "gpt2", mine) is None


def test_every_parameter_of_every_method_can_be_set():
    """Types that the command line cannot write would be parameters that nobody can set."""
    for name, spec in specs().items():
        if spec.settings is None:
            continue
        for parameter in fields(spec.settings):
            if parameter.metadata.get("fixed") or not isinstance(
                parameter.default, float | int | str
            ):
                continue
            text = f"{name}.{parameter.name}={str(parameter.default).lower()}"
            assert checked_choices([text], (), {name: spec.settings})


@pytest.mark.parametrize(
    ("methods", "model", "unused"),
    [
        (["rome"], "tiny-gpt2", False),
        (["rome", "another"], "tiny-gpt2", False),
        (["rome"], "tiny", False),
        (["romee"], "tiny-gpt2", True),
        (["rome"], "tiny-gtp2", True),
        (["another"], "tiny-gpt2", True),
    ],
)
def test_a_preset_of_which_nothing_would_be_used_is_refused(tmp_path, methods, model, unused):
    file = tmp_path / "mine.toml"
    file.write_text(f'methods = {methods}\n[models."{model}"]\nv_lr = 0.1\n')
    given = ["rome", "none"], ["tiny-gpt2", "a/b"]
    if not unused:
        refuse_unused(read_presets(file), *given)
        return
    sentence = rf"--preset mine\.toml: expected .*, and it has {methods[0]} on {model};"
    with pytest.raises(PresetError, match=sentence):
        refuse_unused(read_presets(file), *given)


def presets_in(folder, **models):
    """Presets of rome, a file for each name: its model and values, or the presets of another."""
    read: list[Preset] = []
    for name, text in models.items():
        file = folder / f"{name}.toml"
        file.write_text(text if "methods" in text else f'methods = ["rome"]\n{text}')
        read += read_presets(file)
    return tuple(read)


TWO_FILES = {
    "another value": (
        "[models.tiny]\nv_lr = 7",
        "[models.tiny]\nlayer = 2",
        (2, 7.0),
        "a.toml and b.toml for tiny",
    ),
    "the same value": (
        "[models.tiny]\nv_lr = 7",
        "[models.tiny]\nv_lr = 9",
        (0, 9.0),
        "a.toml and b.toml for tiny",
    ),
    "another model": (
        "[models.tiny]\nv_lr = 7",
        "[models.llama]\nv_lr = 9",
        (0, 7.0),
        "a.toml for tiny",
    ),
    "a longer name": (
        "[models.tiny]\nv_lr = 7",
        "[models.tiny-gpt2]\nlayer = 2",
        (2, 2.0),
        "b.toml for tiny-gpt2",
    ),
    "a shorter name": (
        "[models.tiny-gpt2]\nlayer = 2",
        "[models.tiny]\nv_lr = 7",
        (2, 2.0),
        "a.toml for tiny-gpt2",
    ),
}


@pytest.mark.parametrize(("first", "second", "values", "source"), TWO_FILES.values(), ids=TWO_FILES)
def test_of_two_files_the_later_wins_and_edits_name_both(tmp_path, first, second, values, source):
    """The first was taken whole, and the manifest recorded the second."""
    mine = presets_in(tmp_path, a=first, b=second)
    made = settings_for("rome", RomeSettings, model(), Choices(presets=mine))
    assert (made.layer, made.v_lr) == values
    assert made.settings_from == source
    said = used(mine, ["rome", "none"], ["tiny-gpt2"])
    assert list(said) == [("rome", "tiny-gpt2")]
    for name, value in said["rome", "tiny-gpt2"].values.items():
        assert getattr(made, name) == value


@pytest.mark.parametrize(
    ("files", "refused"),
    [
        ({"a": "[models.tiny]\nv_lr = 7", "b": "[models.tiny]\nlayer = 2"}, ""),
        ({"a": "[models.tiny-gpt2]\nv_lr = 7", "b": "[models.tiny]\nlayer = 2"}, "b.toml: .* used"),
        ({"a": "[models.tiny]\nv_lr = 7", "b": "[models.tiny-gpt2]\nlayer = 2"}, "a.toml: .* used"),
        ({"a": "[models.tiny]\nv_lr = 7", "b": "[models.other]\nlayer = 2"}, "b.toml: .* on other"),
        # what another file is based on is used
        (
            {
                "a": "[models.tiny]\nv_lr = 7",
                "b": 'methods = ["memit"]\nbase = "rome"\n[models.tiny]\nlayers = [1]',
            },
            "",
        ),
    ],
)
def test_each_file_is_used_or_refused(tmp_path, files, refused):
    mine = presets_in(tmp_path, **files)
    methods = ["memit"] if "memit" in files["b"] else ["rome"]
    if not refused:
        refuse_unused(mine, methods, ["tiny-gpt2"])
        return
    with pytest.raises(PresetError, match=f"--preset {refused}"):
        refuse_unused(mine, methods, ["tiny-gpt2"])


def test_files_of_one_name_are_two_files(tmp_path):
    for folder, name in (("one", "tiny-gpt2"), ("two", "other")):
        (tmp_path / folder).mkdir()
        presets_in(tmp_path / folder, mine=f"[models.{name}]\nv_lr = 7")
    mine = [p for folder in ("one", "two") for p in read_presets(tmp_path / folder / "mine.toml")]
    with pytest.raises(PresetError, match="it has rome on other"):
        refuse_unused(mine, ["rome"], ["tiny-gpt2"])


def test_patterns_and_all_name_methods():
    known = ("rome", "r-rome", "memit", "memit-seq")
    assert expand(["memit*"], known) == ["memit", "memit-seq"]
    assert expand(["all"], known) == list(known)
    assert expand(["rome", "*rome"], known) == ["rome", "r-rome"]
    with pytest.raises(RegistryError, match="unknown method 'x\\*'; known: memit, memit-seq"):
        expand(["x*"], known)


def test_the_command_line_sets_and_refuses(pytester):
    def run(*args):
        return pytester.runpytest_subprocess(
            *PLUGINS, "--pyargs", "kn_bench.suites", "--model=tiny-gpt2", "--relation=P36",
            "--limit=1", "-k", "reliability", "--method=rome-no-c", "--run=r", *args,
        )  # fmt: skip

    refused = run("--set", "rome-no-c.lr=1")
    assert refused.ret == 4
    assert "rome-no-c has no parameter 'lr'; expected one of" in refused.stderr.str()
    assert "Traceback" not in refused.stderr.str() + refused.stdout.str()
    assert not (pytester.path / "reports").exists()
    for name, text in (
        ("a", "v_num_grad_steps = 3\nv_lr = 1"),
        ("b", 'kl_factor = 0.5\nv_lr = 2\nmom2_n_tokens = "none"'),
    ):
        file = pytester.path / f"{name}.toml"
        file.write_text(f'methods = ["rome-no-c"]\n[models.tiny]\n{text}\n')
    run("--set", "rome-no-c.layer=1", "--set", "rome-no-c.v_num_grad_steps=2",
        "--preset=a.toml", "--preset=b.toml")  # fmt: skip
    folder = pytester.path / "reports/runs/r"
    manifest = (folder / "manifest.json").read_text()
    assert '"set": "rome-no-c.layer=1 rome-no-c.v_num_grad_steps=2"' in manifest
    values = "v_num_grad_steps=3 v_lr=2 kl_factor=0.5 mom2_n_tokens=none"
    assert f'"preset rome-no-c tiny-gpt2": "{values}"' in manifest
    log = (folder / LOG).read_text()
    assert "a.toml and b.toml for tiny; set: layer, v_num_grad_steps" in log
    assert '"passes":2' in log.replace(" ", "")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("rome.layer=-1", "layer -1: tiny-gpt2 has layers 0 to 3; set others"),
        ("ultraedit.layers=[1,7]", "layer 7: tiny-gpt2 has layers 0 to 3; set others"),
        ("memit.layers=[4]", "layer 4: tiny-gpt2 has layers 0 to 3; set others"),
        ("lora.target_modules=[q_proj]", "target_modules 'q_proj': expected a linear module of"),
        ("grace.module=transformer.h.9.mlp", "module 'transformer.h.9.mlp': expected a linear"),
        ("ultraedit.modules=[mlp.{}]", "modules 'mlp.1': expected a linear module of tiny-gpt2"),
        ("rome.context_template_length_params=[[900,2]]", "contexts of less than the 96 tokens"),
        ("pmet.context_template_length_params=[[900,2]]", "contexts of less than the 96 tokens"),
        ("kn-edit.fewest=9", "fewest 9: expected no more than most, which is"),
    ],
)
def test_settings_that_a_model_cannot_have_are_refused_before_it_is_loaded(
    given, reason, monkeypatch
):
    monkeypatch.setattr(loading, "load_model", None)
    name = given.partition(".")[0]
    spec = specs()[name]
    choices = checked_choices([given], [], {name: spec.settings})
    with pytest.raises(SettingError) as refused:
        refuse_unfit(choices, [spec], ["tiny-gpt2"])
    assert str(refused.value).startswith(f"{name} on tiny-gpt2: ")
    assert reason in str(refused.value)


@pytest.mark.parametrize("text", ['["q_proj", "v_proj"]', "[q_proj,v_proj]", "q_proj, v_proj"])
def test_names_are_read_though_a_shell_took_their_quotes_away(text):
    (given,) = checked_choices(
        [f"lora.target_modules={text}"], [], {"lora": LoraSettings}
    ).assignments
    assert check_assignment(given, LoraSettings) == ("q_proj", "v_proj")


def test_the_outline_of_a_model_is_the_model_without_its_weights(tmp_path):
    model, outline = load_model("tiny-bert"), load_outline("tiny-bert")
    assert all(p.is_meta for p in outline.hf.parameters())
    shapes = {n: p.shape for n, p in model.hf.named_parameters()}
    assert {n: p.shape for n, p in outline.hf.named_parameters()} == shapes
    assert outline.tokens.content_hash == model.tokens.content_hash
    with pytest.raises(ValueError, match="nowhere"):
        load_outline(str(tmp_path / "nowhere"))


def test_a_layer_is_held_against_the_models_that_the_method_is_defined_for():
    """tiny-bert has three layers, but ROME edits causal models."""
    spec = specs()["rome"]
    choices = checked_choices(["rome.layer=3"], [], {"rome": RomeSettings})
    refuse_unfit(choices, [spec], ["tiny-gpt2", "tiny-llama", "tiny-bert"])


def test_a_preset_is_held_against_its_model_before_that_is_loaded(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('methods = ["rome"]\n[models.tiny-gpt2]\nsource = "me"\nlayer = 9\n')
    choices, rome = Choices(presets=tuple(read_presets(file))), specs()["rome"]
    refuse_unfit(choices, [rome], ["tiny-llama"])
    with pytest.raises(SettingError, match="rome on tiny-gpt2: layer 9: tiny-gpt2 has layers 0 to"):
        refuse_unfit(choices, [rome], ["tiny-gpt2"])
    # what --set puts in its place is all that counts
    replaced = Choices((parse_assignment("rome.layer=1"),), choices.presets)
    refuse_unfit(replaced, [rome], ["tiny-gpt2"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rome.v_num_grad_steps=0", "expected `int` >= 1"),
        ("rome.v_num_grad_steps=-3", "expected `int` >= 1"),
        ("rome.v_lr=0", "expected `float` > 0"),
        ("rome.v_lr=nan", "expected a finite number"),
        ("rome.kl_factor=inf", "expected a finite number"),
        ("ultraedit.batch_size=0", "expected `int` >= 1"),
    ],
)
def test_values_out_of_range_are_refused(text, reason):
    methods = {"rome": RomeSettings, "ultraedit": UltraEditSettings}
    with pytest.raises(SettingError) as refused:
        checked_choices([text], [], methods)
    assert reason.replace("`", "") in str(refused.value)


SIGNED = {*LAYERS, "context_seed", "order_seed", "init_seed", "mask_seed"}
"""Numbers that may be below 0; a layer below 0 is refused by its model's depth."""


def numbers() -> list[tuple[str, str]]:
    """Method and name of each parameter that takes a number, where it may not be below 0."""

    def takes(hint: Any, value: float) -> bool:
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError:
            return False
        return True

    return [
        (method, name)
        for method, spec in specs().items()
        if spec.settings is not None
        for name, hint in parameters(spec.settings).items()
        if name not in SIGNED and (takes(hint, 0) or takes(hint, 1))
    ]


@pytest.mark.parametrize(("method", "name"), numbers())
@pytest.mark.parametrize("value", ["-1", "-1e-9"])
def test_no_number_is_below_0_but_seeds(method, name, value):
    """Weights, decays, margins, radii, counts: as the methods are defined, they cannot be."""
    with pytest.raises(SettingError) as refused:
        checked_choices([f"{method}.{name}={value}"], (), {method: specs()[method].settings})
    assert str(refused.value).startswith(f"--set '{method}.{name}={value}': {method}.{name} is of ")
    assert "\n" not in str(refused.value)


def test_the_walk_over_numbers_meets_what_it_is_to_meet():
    walked = set(numbers())
    assert {("rome", "mom2_n_tokens"), ("ft-l", "norm_constraint"), ("wise", "others")} <= walked
    assert {("lora", "lora_dropout"), ("kn-edit", "fewest"), ("betaedit", "tau")} <= walked


@pytest.mark.parametrize(
    "text",
    [
        # 0 is none of it, and defined
        "rome.kl_factor=0", "rome.stop_loss=0", "rome.context_seed=-1", "ft-l.weight_decay=0",
        "rome.context_template_length_params=[]", "rome.context_template_length_params=[[5,0]]",
        "betaedit.lambda_1=0", "emmet.emmet_lambda=0", "encore.mom2_update_weight=0",
        "grace.eps=0", "ike.demonstrations=0", "kn-edit.fewest=0", "ultraedit.warm_up=0",
        "lora.lora_dropout=0", "wise.gamma=0", "wise.others=32", "lora.init_seed=-1",
        "lora.target_modules=[\"attn.c_attn\",\"c_proj\"]", "grace.module=transformer.h.0.mlp.c_fc",
        "ultraedit.modules=[\"transformer.h.{}.attn.c_proj\"]", "kn-edit.most=2",
    ],
)  # fmt: skip
def test_the_least_values_are_taken(text):
    method = text.partition(".")[0]
    cls = specs()[method].settings
    assert cls is not None
    settings_for(method, cls, load_model("tiny-gpt2"), checked_choices([text], (), {method: cls}))


@pytest.mark.parametrize(
    "text",
    [
        # nothing could be solved, or computed
        "memit.mom2_update_weight=0", "pmet.mom2_update_weight=0", "alphaedit.L2=0",
        "alphaedit.nullspace_threshold=0", "nas.L2=0", "betaedit.tau=0", "lora.lora_dropout=1",
        "lora.lora_alpha=0", "lora.init_seed=100000000000000000000", "kn-edit.most=0",
        "rome.mom2_n_tokens=0", "wise.others=0", "wise.others=33",
        *(
            f"{method}.context_template_length_params={lengths}"
            for method in ("rome", "memit", "alphaedit")
            for lengths in ("[[-1,2]]", "[[0,1]]", "[[5,-1]]", "[[5]]", "[[5,1],[-3,1]]")
        ),
    ],
)  # fmt: skip
def test_values_with_which_nothing_works_are_refused_before_the_run(text):
    method = text.partition(".")[0]
    with pytest.raises(SettingError, match=r"expected (int|float|array)"):
        checked_choices([text], (), {method: specs()[method].settings})


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["kn-edit.fewest=6"], "fewest 6: expected no more than most, which is 5; set"),
        (["kn-erase.most=1"], "fewest 2: expected no more than most, which is 1; set"),
        (["emmet.mom2_update_weight=0"], "mom2_update_weight and update_norm_lambda are 0: "),
        (
            ["encore.mom2_update_weight=0", "encore.update_norm_lambda=0"],
            "mom2_update_weight and update_norm_lambda are 0: ",
        ),
        (["betaedit.lambda_1=0", "betaedit.lambda_2=0"], "lambda_1 and lambda_2 are 0: expected"),
        (["lora.target_modules=[]"], "target_modules is []: expected "),
        *(
            ([f"{method}.context_template_length_params=[[5,1],[{n},1]]"], f"and got {n}; set")
            for method in ("rome", "r-rome", "memit", "nas")
            for n in (96, 100000)
        ),
        *(
            ([text.format(name)], f"{name!r}: expected a linear module of tiny-gpt2")
            for text in ("grace.module={}", 'lora.target_modules=["c_attn","{}"]',
                         'ultraedit.modules=["{}"]')
            for name in ("nope", "transformer.h.0", "transformer.wte", "transformer.ln_f",
                         "lm_head", "transformer.h.0.ln_1")
        ),
        (['ultraedit.modules=["transformer.h.{"]'], "'transformer.h.{': expected a linear"),
        (['ultraedit.modules=["h.{}.{x}"]'], "'h.1.{x}': expected a linear module"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_have_is_refused_when_its_settings_are_made(texts, sentence):
    """Each was an exception from inside an edit, or an edit that changed nothing."""
    method = texts[0].partition(".")[0]
    cls = specs()[method].settings
    assert cls is not None
    choices = checked_choices(texts, (), {method: cls})
    with pytest.raises(SettingError) as refused:
        settings_for(method, cls, load_model("tiny-gpt2"), choices)
    assert str(refused.value).startswith(f"{method} on tiny-gpt2: ")
    assert sentence in str(refused.value)


def test_every_default_is_in_range():
    classes = [spec.settings for spec in specs().values() if spec.settings]
    assert len(classes) > 10
    for cls, declared in [(each, field) for each in classes for field in fields(each)]:
        if declared.default is not MISSING and declared.name in parameters(cls):
            kept = msgspec.convert(declared.default, parameters(cls)[declared.name])
            assert kept == declared.default
