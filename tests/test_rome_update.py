"""ROME's rank-one update in closed form, and the solve by C."""

import pytest
import torch

from kn_bench.editing.closed_form import Covariance, SingularError
from kn_bench.editing.rome.problem import Value
from kn_bench.editing.rome.update import KeyChoice, rank_one


def made_up_value(contexts=4, d_mlp=6, d_model=5, bias=True):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, b, keys = draw(d_mlp, d_model), draw(d_model) * bias, draw(contexts, d_mlp)
    nothing = torch.zeros(1, dtype=torch.float64)
    value = Value(
        keys, keys @ weight + b, draw(d_model), nothing, nothing, nothing, nothing, nothing
    )
    square = draw(d_mlp, 3 * d_mlp)
    return weight, b, value, Covariance(square @ square.T)


@pytest.mark.parametrize("with_c", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("u_from", ["mean", "bare"])
@pytest.mark.parametrize("k_p_from", ["mean", "bare"])
def test_the_edited_layer_answers_v_star_to_the_denominators_key(with_c, bias, u_from, k_p_from):
    weight, b, value, solver = made_up_value(bias=bias)
    solved = rank_one(value, 0, solver=solver if with_c else None, u_from=u_from, k_p_from=k_p_from)
    k_p = value.keys[0] if k_p_from == "bare" else value.keys.mean(0)
    edited = weight + solved.update.u @ solved.update.v
    torch.testing.assert_close(k_p @ edited + b, value.v_star)
    assert solved.denominator == pytest.approx(float(k_p @ solved.update.u[:, 0]))


def test_published_rome_answers_otherwise_to_the_mean_key_and_r_rome_does_not():
    weight, b, value, solver = made_up_value()
    mean = value.keys.mean(0)
    choices: tuple[tuple[KeyChoice, bool], ...] = (("bare", False), ("mean", True))
    for k_p_from, exact in choices:
        solved = rank_one(value, 0, solver=solver, k_p_from=k_p_from)
        answer = mean @ (weight + solved.update.u @ solved.update.v) + b
        assert torch.allclose(answer, value.v_star) is exact


def test_the_update_is_the_least_change_that_fits_by_c():
    """Equation 2 minimises |dW C^(1/2)|: any other dW with k dW = v* - kW is larger by C."""
    _, _, value, solver = made_up_value()
    solved = rank_one(value, 0, solver=solver, u_from="bare")
    k, change = value.keys[0], solved.update.u @ solved.update.v
    size = torch.trace(change.T @ solver.matrix @ change)
    for seed in range(5):
        other = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)).double()
        other -= torch.outer(k, k @ other) / (k @ k)
        moved = change + 0.1 * other
        torch.testing.assert_close(k @ moved, k @ change)
        assert torch.trace(moved.T @ solver.matrix @ moved) > size


def test_the_solve_is_exact_where_float32_is_not():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    matrix = (basis * torch.logspace(0, 6, 40, dtype=torch.float64)) @ basis.T
    wanted = torch.randn(1, 40, generator=generator, dtype=torch.float64)
    keys = wanted @ matrix
    error = (Covariance(matrix).solve(keys) - wanted).norm() / wanted.norm()
    in_float32 = (torch.linalg.solve(matrix.float(), keys[0].float()) - wanted[0]).norm()
    assert error < 1e-8
    assert in_float32 / wanted.norm() > 1e-4


@pytest.mark.parametrize(
    ("silent", "cause"),
    [
        (0, "too few tokens for its 4 dimensions; use more text, edit another layer"),
        (1, "the text never activates 1 of its 4 neurons; edit another layer"),
        (3, "the text never activates 3 of its 4 neurons; edit another layer"),
    ],
)
def test_a_singular_c_is_refused(silent, cause):
    """A neuron that never fires is another cause than too little text."""
    keys = torch.ones(3, 4, dtype=torch.float64)
    keys[:, :silent] = 0
    with pytest.raises(
        SingularError,
        match=f"C is not positive definite: {cause}, or set mom2_adjustment=false",
    ):
        Covariance(keys.T @ keys).solve(keys)
