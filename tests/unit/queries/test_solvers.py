"""Solvers on small dense systems: the answer, the residual they report, and when they stop."""

import pytest
import torch

from forebear.errors import ForebearError
from forebear.queries.solvers import arnoldi, conjugate_gradient, largest_eigenvalue, lissa, residuals

SIZE = 30


@pytest.fixture
def matrix():
    """Symmetric positive definite with eigenvalues from 0.01 to 10."""
    q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    return q * torch.logspace(-2, 1, SIZE, dtype=torch.float64) @ q.T


@pytest.fixture
def b():
    return torch.randn(4, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def solved(matrix, b):
    return torch.linalg.solve(matrix, b.T).T


def generator():
    return torch.Generator().manual_seed(2)


def test_cg_solves_every_row_and_reports_the_residual(matrix, b):
    b[1] *= 1e6
    solution = conjugate_gradient(lambda v: v @ matrix, b, 1e-8, 200)
    assert (solution.residuals <= 1e-7).all()
    torch.testing.assert_close(solution.residuals, (b - solution.x @ matrix).norm(dim=1) / b.norm(dim=1))
    torch.testing.assert_close(solution.x, solved(matrix, b), rtol=1e-4, atol=1e-5)


def test_cg_is_exact_after_as_many_iterations_as_there_are_distinct_eigenvalues(b):
    matrix = torch.diag(torch.tensor([1.0, 5.0, 9.0]).repeat(10).double())
    solution = conjugate_gradient(lambda v: v @ matrix, b, 1e-12, 200)
    assert (solution.iterations == 3).all()


def test_a_solved_row_costs_nothing_more(matrix, b):
    start = solved(matrix, b)
    start[2] = 0
    rows = []

    def operator(vectors):
        rows.append(len(vectors))
        return vectors @ matrix

    solution = conjugate_gradient(operator, b, 1e-8, 200, start=start)
    assert solution.iterations.tolist()[:2] == [0, 0]
    assert set(rows[1:-1]) == {1}  # but for the first residual and the last
    torch.testing.assert_close(solution.x, solved(matrix, b), rtol=1e-5, atol=1e-6)


def test_a_perfect_preconditioner_needs_one_iteration(matrix, b):
    solution = conjugate_gradient(lambda v: v @ matrix, b, 1e-8, 200, precondition=lambda v: solved(matrix, v))
    assert (solution.iterations == 1).all()


def test_an_indefinite_matrix_is_refused(b):
    with pytest.raises(ForebearError, match="not positive definite"):
        conjugate_gradient(lambda v: -v, b, 1e-8, 10)


def test_lissa_converges_with_the_largest_eigenvalue_as_scale(matrix, b):
    scale = largest_eigenvalue(lambda v: v @ matrix, b, 100, generator())
    assert scale == pytest.approx(10, rel=1e-3)
    x = lissa([lambda v: v @ matrix], b, scale, steps=15_000)
    torch.testing.assert_close(x, solved(matrix, b), rtol=1e-5, atol=1e-5)


def test_lissa_with_too_small_a_scale_is_refused(matrix, b):
    with pytest.raises(ForebearError, match="diverged"):
        lissa([lambda v: v @ matrix], b, 0.1, steps=1000)


def test_arnoldi_of_full_rank_is_the_inverse(matrix, b):
    inverse = arnoldi(lambda v: v @ matrix, b, SIZE, generator())
    torch.testing.assert_close(inverse(b), solved(matrix + torch.eye(SIZE).double(), b))


def test_arnoldi_finds_a_low_rank_and_stops_there(b):
    factor = torch.randn(5, SIZE, dtype=torch.float64, generator=generator())
    inverse = arnoldi(lambda v: v @ factor.T @ factor, b, SIZE, generator())
    assert len(inverse.basis) <= 7
    inside = inverse.basis.T @ inverse.basis  # what lies outside is dropped
    torch.testing.assert_close(inverse(b), solved(factor.T @ factor + torch.eye(SIZE).double(), b) @ inside)


def test_more_krylov_vectors_leave_a_smaller_residual(matrix, b):
    whole = [arnoldi(lambda v: v @ matrix, b, rank, generator())(b) for rank in (3, 10, 20)]
    left = [residuals(lambda v: v @ matrix + v, x, b).max().item() for x in whole]
    assert left[0] > left[1] > left[2]
