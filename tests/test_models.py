# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out predictions against explicit refits."""

import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst import dki, dti

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError
from eddymotion.models import (
    AverageModel,
    GaussianProcessModel,
    LegendreCovariance,
    MaternCovariance,
    Model,
    SphericalCovariance,
    TensorModel,
    choose_model,
    get_model,
)
from eddymotion.models.base import held_out_operator, projected_precision
from eddymotion.models.covariance import fit_covariance, restricted_likelihood
from eddymotion.models.dipy import DipyModel, find_model
from eddymotion.models.gaussian_process import mean_design, predictors
from eddymotion.models.harmonics import (
    EM_ITERATIONS,
    ORDERS,
    HarmonicCovariance,
    learn_directions,
    real_harmonics,
)
from eddymotion.models.tensor import MIN_SIGNAL_FRACTION, design_matrix
from eddymotion.simulation import shelled_scheme

SPHERICAL = SphericalCovariance(signal=7.0, angle=1.1, b_scale=0.5)
FIXED_GP = GaussianProcessModel(SPHERICAL, fitted=True)
FAMILIES = (
    SPHERICAL,
    LegendreCovariance((9.0, 2.0, 0.7, 0.2), b_scale=0.6, b_power=0.4),
    MaternCovariance(signal=11.0, length=0.9, decay=0.3),
)


def some_voxels(dwi, n=60):
    """Float64 voxels of the brain and their gradients."""
    voxels = dwi.signal[dwi.mask].astype(float)
    voxels = voxels[(voxels > 0).all(axis=1)]
    return voxels[:: max(1, len(voxels) // n)][:n], dwi.gradients


@pytest.fixture(params=["simulated", "multishell_2slices"])
def two_shell_voxels(request, two_shells, public_series):
    return some_voxels(
        two_shells if request.param == "simulated" else public_series(request.param)
    )


@pytest.fixture(params=["simulated", "ds000114_trunc"])
def one_shell_voxels(request, moving, public_series):
    return some_voxels(moving if request.param == "simulated" else public_series(request.param))


def groups_by_hand(gradients, min_q_distance):
    """Who is left out with whom, one pair at a time."""
    groups = []
    for i in range(len(gradients)):
        group = [i]
        for j in range(len(gradients)):
            if i == j or gradients.is_b0[i] or gradients.is_b0[j]:
                continue
            qi, qj = (gradients.bvecs[k] * np.sqrt(gradients.bvals[k] / 1000) for k in (i, j))
            if min(np.linalg.norm(qi - qj), np.linalg.norm(qi + qj)) < min_q_distance:
                group.append(j)
        groups.append(np.array(group))
    return groups


@pytest.fixture(params=["alone", "with neighbours"])
def min_q_distance(request, two_shell_voxels):
    """Zero, or a distance at which some volumes have company and others not."""
    if request.param == "alone":
        return 0.0
    _, gradients = two_shell_voxels
    q = gradients.qvecs[gradients.dwis]
    apart = np.minimum(
        np.linalg.norm(q[:, None] - q, axis=2), np.linalg.norm(q[:, None] + q, axis=2)
    )
    nearest = np.median(np.min(apart + 9 * np.eye(len(q)), axis=1)) * 1.02
    sizes = [len(group) for group in groups_by_hand(gradients, nearest)]
    assert min(sizes) == 1 < max(sizes)
    return nearest


def dipy_design(gradients, module):
    table = gradient_table(
        gradients.bvals, bvecs=gradients.bvecs, b0_threshold=gradients.b0_threshold
    )
    return module.design_matrix(table)


def refit_tensor(voxels, gradients, module, groups, weighted=False):
    X = dipy_design(gradients, module)
    X = X / np.linalg.norm(X, axis=0)
    y = np.log(np.maximum(voxels, MIN_SIGNAL_FRACTION * voxels.max()))
    predicted = np.empty_like(y)
    for i, group in enumerate(groups):
        others = np.setdiff1d(np.arange(len(X)), group)
        for v in range(len(y)):
            root = np.ones(len(X))
            if weighted:
                root = np.exp(X @ np.linalg.lstsq(X, y[v], rcond=None)[0])
                root /= root.max()
            coefficients = np.linalg.lstsq(
                X[others] * root[others, None], y[v, others] * root[others], rcond=None
            )[0]
            predicted[v, i] = X[i] @ coefficients
    return np.exp(predicted)


def total(covariance, gradients):
    return covariance.matrix(gradients) + np.eye(len(gradients))


def refit_gaussian_process(voxels, gradients, covariance, groups):
    """Universal kriging, with each held-out volume really removed."""
    K = total(covariance, gradients)
    X = np.stack([np.isin(np.arange(len(K)), s) for s in (gradients.b0s, *gradients.shells)], 1)
    X = X[:, X.any(axis=0)].astype(float)
    predicted = np.empty_like(voxels)
    for i, group in enumerate(groups):
        others = np.setdiff1d(np.arange(len(K)), group)
        Ko, Xo, yo = K[np.ix_(others, others)], X[others], voxels[:, others].T
        beta = np.linalg.solve(Xo.T @ np.linalg.solve(Ko, Xo), Xo.T @ np.linalg.solve(Ko, yo))
        predicted[:, i] = X[i] @ beta + K[i, others] @ np.linalg.solve(Ko, yo - Xo @ beta)
    return predicted


@pytest.mark.parametrize("kurtosis", [False, True])
def test_tensor_fits_equal_explicit_refits(two_shell_voxels, kurtosis, min_q_distance):
    voxels, gradients = two_shell_voxels
    groups = groups_by_hand(gradients, min_q_distance)
    model = TensorModel(kurtosis=kurtosis, min_q_distance=min_q_distance)
    expected = refit_tensor(voxels[:12], gradients, dki if kurtosis else dti, groups)
    predicted = model.leave_one_out(voxels, gradients)[:12]
    assert voxels[:12].min() > MIN_SIGNAL_FRACTION * voxels.max()
    np.testing.assert_allclose(predicted, expected, rtol=1e-8)


def test_single_shell_tensor_equals_explicit_refits(one_shell_voxels):
    voxels, gradients = one_shell_voxels
    expected = refit_tensor(voxels, gradients, dti, groups_by_hand(gradients, 0))
    np.testing.assert_allclose(TensorModel().leave_one_out(voxels, gradients), expected, rtol=1e-8)


def test_weighted_tensor_equals_explicit_refits_at_its_weights(two_shell_voxels):
    voxels, gradients = two_shell_voxels
    groups = groups_by_hand(gradients, 0)
    expected = refit_tensor(voxels[:12], gradients, dti, groups, weighted=True)
    predicted = TensorModel(weighted=True).leave_one_out(voxels[:12], gradients)
    np.testing.assert_allclose(predicted, expected, rtol=1e-8)
    assert not np.allclose(predicted, TensorModel().leave_one_out(voxels[:12], gradients), 1e-3)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_gaussian_process_equals_explicit_refits(two_shell_voxels, min_q_distance, covariance):
    voxels, gradients = two_shell_voxels
    model = GaussianProcessModel(covariance, fitted=True, min_q_distance=min_q_distance)
    expected = refit_gaussian_process(
        voxels, gradients, covariance, groups_by_hand(gradients, min_q_distance)
    )
    np.testing.assert_allclose(model.leave_one_out(voxels, gradients), expected, rtol=1e-8)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_predictors_of_a_volume_are_its_row_of_the_precision(two_shells, covariance):
    model, table = GaussianProcessModel(covariance, fitted=True), two_shells.gradients
    precision = model.precision(table)
    for volume in (0, table.dwis[3], table.dwis[-1]):
        others = np.setdiff1d(np.arange(len(table)), volume)
        known, sought = table.select(others), table.select([volume, volume])
        weights, variances = predictors(covariance, known, sought)
        row = precision[volume]
        np.testing.assert_allclose(weights, [-row[others] / row[volume]] * 2, atol=1e-8)
        np.testing.assert_allclose(variances, [1 / row[volume]] * 2)


def test_average_is_the_mean_of_the_others(two_shell_voxels, min_q_distance):
    voxels, gradients = two_shell_voxels
    predicted = AverageModel(min_q_distance).leave_one_out(voxels, gradients)
    groups = groups_by_hand(gradients, min_q_distance)
    for shell in (gradients.b0s, *gradients.shells):
        for i in shell:
            expected = voxels[:, np.setdiff1d(shell, groups[i])].mean(axis=1)
            np.testing.assert_allclose(predicted[:, i], expected, rtol=1e-8)


@pytest.mark.parametrize(
    "model",
    [AverageModel(), TensorModel(), TensorModel(weighted=True), FIXED_GP],
)
def test_prediction_ignores_the_volume_itself_layout_and_order(two_shells, model):
    assert isinstance(model, Model)
    signal = two_shells.signal[10:13, 8:12, 8:11].astype(float) + 50
    gradients = two_shells.gradients
    predicted = model.leave_one_out(signal, gradients)
    assert predicted.shape == signal.shape
    order = np.random.default_rng(0).permutation(len(gradients))
    shuffled = model.leave_one_out(signal[..., order], gradients.select(order))
    np.testing.assert_allclose(shuffled, predicted[..., order], rtol=1e-8)
    np.testing.assert_allclose(
        model.leave_one_out(np.asfortranarray(signal), gradients), predicted, rtol=1e-12
    )
    if model != TensorModel(weighted=True):  # its weights come from all volumes
        changed = signal.copy()
        changed[..., 7] *= 0.3
        np.testing.assert_allclose(
            model.leave_one_out(changed, gradients)[..., 7], predicted[..., 7], rtol=1e-8
        )
    doubled = model.leave_one_out(2 * signal, gradients)
    np.testing.assert_allclose(doubled, 2 * predicted, rtol=1e-8)
    before = signal.copy()
    model.leave_one_out(signal, gradients)
    np.testing.assert_array_equal(signal, before)


def test_volumes_that_the_others_do_not_determine_are_nan():
    gradients = shelled_scheme({1000: 12}, 1)
    voxels = np.random.default_rng(0).uniform(200, 900, (20, 13))
    for model in (TensorModel(), TensorModel(weighted=True), AverageModel()):
        predicted = model.leave_one_out(voxels, gradients)
        assert np.isnan(predicted[:, 0]).all()
        assert np.isfinite(predicted[:, 1:]).all()
    lone_shell = Gradients(
        np.append(gradients.bvals, 2500), np.vstack([gradients.bvecs, [0, 0, 1]])
    )
    voxels = np.column_stack([voxels, voxels[:, 0]])
    for model in (FIXED_GP, AverageModel()):
        predicted = model.leave_one_out(voxels, lone_shell)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(predicted[0])), [0, 13])


def naive_covariance(gradients, hyper):
    K = np.zeros((len(gradients),) * 2)
    for i in gradients.dwis:
        for j in gradients.dwis:
            axis_angle = np.arccos(min(1.0, abs(gradients.bvecs[i] @ gradients.bvecs[j])))
            ratio = axis_angle / hyper.angle
            angular = 1 - 1.5 * ratio + 0.5 * ratio**3 if ratio < 1 else 0.0
            apart = np.log(gradients.bvals[i] / gradients.bvals[j])
            K[i, j] = hyper.signal * angular * np.exp(-(apart**2) / (2 * hyper.b_scale**2))
    return K


def test_spherical_covariance_is_the_published_one(two_shells):
    np.testing.assert_allclose(
        SPHERICAL.matrix(two_shells.gradients),
        naive_covariance(two_shells.gradients, SPHERICAL),
        atol=1e-6,
    )


@pytest.mark.parametrize("covariance", FAMILIES)
def test_slope_of_the_likelihood_equals_finite_differences(covariance):
    gradients = shelled_scheme({700: 12, 1500: 10}, 2)
    voxels = np.random.default_rng(3).normal(size=(len(gradients), 50))
    scatter, X = voxels @ voxels.T / 50, mean_design(gradients)
    theta = covariance.theta(gradients)

    def value(theta):
        return restricted_likelihood(scatter, total(covariance.replaced(theta), gradients), X)[0]

    _, slope, _ = restricted_likelihood(scatter, total(covariance, gradients), X)
    found = np.tensordot(covariance.derivatives(gradients), slope, axes=2)
    steps = 1e-5 * np.eye(len(theta))
    expected = [(value(theta + h) - value(theta - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def draw_voxels(covariance, gradients, n=6000):
    """Voxels (V, N) of a covariance, around means that differ from voxel to voxel."""
    random = np.random.default_rng(0)
    factor = np.linalg.cholesky(total(covariance, gradients))
    voxels = 40 * (factor @ random.normal(size=(len(gradients), n))).T
    means = mean_design(gradients) @ np.linspace(2000, 500, mean_design(gradients).shape[1])
    return voxels + means + 100 * random.normal(size=(n, 1))


@pytest.mark.parametrize("covariance", FAMILIES)
def test_reml_recovers_the_parameters_of_the_data(covariance):
    gradients = shelled_scheme({700: 30, 1500: 30, 3000: 30}, 4)
    table = gradients.select(gradients.dwis)
    start = type(covariance)()
    voxels = draw_voxels(covariance, table)
    scatter = voxels.T @ voxels / len(voxels)
    found = fit_covariance(start, scatter, table, mean_design(table))
    found = getattr(found, "isotropic", found)
    assert not np.allclose(start.theta(table), covariance.theta(table), atol=0.2)
    np.testing.assert_allclose(found.theta(table), covariance.theta(table), atol=0.12)


@pytest.mark.parametrize("covariance", FAMILIES)
def test_no_other_descent_finds_likelier_parameters(covariance):
    from scipy.optimize import minimize

    gradients = shelled_scheme({1000: 20, 2500: 30}, 2)
    table = gradients.select(gradients.dwis)
    voxels = draw_voxels(covariance, table, 2000)
    scatter, X = voxels.T @ voxels / len(voxels), mean_design(table)
    found = fit_covariance(type(covariance)(), scatter, table, X)
    found = getattr(found, "isotropic", found)

    def value(theta):
        return restricted_likelihood(scatter, total(covariance.replaced(theta), table), X)[0]

    start = found.theta(table)
    best = minimize(value, start, method="Nelder-Mead", bounds=covariance.bounds(table),
                    options={"maxfev": 400, "fatol": 1e-9})  # fmt: skip
    assert value(start) - best.fun < 1e-5


@pytest.mark.parametrize(
    ("true", "n", "seed"),
    [(LegendreCovariance((20.0, 4.0, 1.5, 1.0)), 20, 0), (SphericalCovariance(20.0, 1.5), 12, 0)],
)
def test_few_directions_are_not_believed_to_be_without_noise(true, n, seed):
    """The likelihood hardly tells fine signal from noise, whose share ran to nothing."""
    scheme = shelled_scheme({1000: n}, 2)
    table = scheme.select(scheme.dwis)
    factor, X = np.linalg.cholesky(total(true, table)), mean_design(table)
    voxels = factor @ np.random.default_rng(seed).normal(size=(n, 400))
    found = fit_covariance(type(true)(), voxels @ voxels.T / 400, table, X)
    learnt, known = (projected_precision(total(one, table), X) for one in (found, true))
    assert np.diag(learnt).min() > np.diag(known).min() / 2
    alone = list(np.arange(n)[:, None])
    learnt, known = (held_out_operator(one, alone) for one in (learnt, known))
    assert np.linalg.norm(learnt - known) < 0.05 * np.linalg.norm(known)


def test_directions_that_are_not_alike_are_learnt():
    """A covariance with one preferred axis beats the isotropic one, and is found."""
    gradients = shelled_scheme({1000: 40, 2500: 40}, 1)
    table = gradients.select(gradients.dwis)
    coefficients = np.diag([4.0, 0.1, 0.1, 0.1, 1.0])
    true = HarmonicCovariance(LegendreCovariance((4.0, 0.5, 0.1, 0.05)), coefficients)
    voxels = draw_voxels(true, table)
    scatter, X = voxels.T @ voxels / len(voxels), mean_design(table)
    found = fit_covariance(LegendreCovariance(), scatter, table, X)
    assert isinstance(found, HarmonicCovariance)
    learnt, isotropic = (
        restricted_likelihood(scatter, total(c, table), X)[0] for c in (found, found.isotropic)
    )
    assert learnt < isotropic - 1
    K, expected = total(found, table), total(true, table)
    assert np.linalg.norm(K - expected) < 0.1 * np.linalg.norm(expected)


def test_learning_directions_is_expectation_maximisation():
    """Against the same with the precision of all volumes, formed anew each time."""
    scheme = shelled_scheme({1000: 60, 2500: 60}, 0)
    random = np.random.default_rng(0)
    isotropic, design = LegendreCovariance((3.0, 0.8, 0.2, 0.1)), mean_design(scheme)
    values = random.normal(size=(len(scheme), 300))
    values += np.linalg.cholesky(isotropic.matrix(scheme) + 1e-6 * np.eye(len(scheme))) @ values
    scatter = values @ values.T / 300
    found = learn_directions(isotropic, scatter, scheme, design)
    orders = {5: (2,), 14: (2, 4), 27: (2, 4, 6), 44: (2, 4, 6, 8)}[len(found.coefficients)]
    basis = real_harmonics(scheme.bvecs, orders)
    sizes, vectors = np.linalg.eigh(isotropic.resemblance(scheme))
    factors = [basis * (np.sqrt(size) * vector)[:, None]
               for size, vector in zip(sizes, vectors.T, strict=True)
               if size > 1e-3 * sizes[-1]]  # fmt: skip
    rest = isotropic.matrix(scheme, ORDERS[len(orders) :]) + np.eye(len(scheme))
    by_order = zip(isotropic.variances, orders, strict=False)
    C = np.diag([c / (2 * order + 1) for c, order in by_order for _ in range(2 * order + 1)])
    for _ in range(EM_ITERATIONS):
        P = projected_precision(rest + sum(F @ C @ F.T for F in factors), design)
        noise = np.trace(P @ scatter) / (len(scheme) - design.shape[1])
        C = np.mean([C @ F.T @ P @ scatter @ P @ F @ C / noise + C - C @ F.T @ P @ F @ C
                     for F in factors], axis=0)  # fmt: skip
    np.testing.assert_allclose(found.coefficients, C, rtol=1e-8, atol=1e-10)


def test_harmonics_add_up_to_legendre_polynomials():
    from scipy.special import eval_legendre

    bvecs = shelled_scheme({1000: 9}, 1).bvecs[1:]
    for order in (2, 4, 8):
        basis = real_harmonics(bvecs, (order,))
        expected = (2 * order + 1) * eval_legendre(order, bvecs @ bvecs.T)
        np.testing.assert_allclose(basis @ basis.T, expected, atol=1e-9)


def test_restricted_likelihood_is_that_of_the_contrasts():
    """REML is the plain likelihood of contrasts free of the mean, up to a constant."""
    gradients = shelled_scheme({1000: 10, 2000: 8}, 2)
    X = np.stack([np.isin(np.arange(20), s) for s in (gradients.b0s, *gradients.shells)], 1) * 1.0
    voxels = np.random.default_rng(1).normal(size=(40, 20))
    scatter = voxels.T @ voxels / 40
    contrasts = np.linalg.svd(X)[0][:, 3:]

    def by_contrasts(K):
        C = contrasts.T @ K @ contrasts
        misfit = np.trace(np.linalg.solve(C, contrasts.T @ scatter @ contrasts))
        return 17 * np.log(misfit) + np.linalg.slogdet(C)[1]

    differences = [
        restricted_likelihood(scatter, K, X)[0] - by_contrasts(K)
        for K in (total(covariance, gradients) for covariance in FAMILIES)
    ]
    np.testing.assert_allclose(differences, differences[0], atol=1e-9)


def with_trace_rows(gradients, n=2):
    bvals = np.append(gradients.bvals, [gradients.shell_bvals[0]] * n)
    return Gradients(bvals, np.vstack([gradients.bvecs, np.zeros((n, 3))]))


@pytest.mark.parametrize("angle", [0.6, 1.0, 1.3, np.pi / 2])
def test_covariance_with_trace_rows_is_positive_definite(angle):
    for gradients in (shelled_scheme({1000: 60}, 2), shelled_scheme({1000: 30, 2500: 45}, 2)):
        K = total(SphericalCovariance(1e3, angle), with_trace_rows(gradients))
        np.testing.assert_array_equal(K, K.T)
        assert np.linalg.eigvalsh(K).min() > 0


def test_trace_rows_predict_the_mean_over_directions():
    tensor = np.diag([1.7e-3, 0.4e-3, 0.3e-3])
    gradients = with_trace_rows(shelled_scheme({1000: 30}, 3))
    adc = np.einsum("ni,ij,nj->n", gradients.bvecs, tensor, gradients.bvecs)
    adc[gradients.is_trace] = np.trace(tensor) / 3
    signal = 1000 * np.exp(-gradients.bvals * adc)
    for weighted in (False, True):
        predicted = TensorModel(weighted=weighted).leave_one_out(signal[None], gradients)[0]
        np.testing.assert_allclose(predicted, signal, rtol=1e-6)
    predicted = FIXED_GP.leave_one_out(signal[None], gradients)[0]
    assert np.isfinite(predicted).all()
    np.testing.assert_allclose(predicted[-1], signal[-1], rtol=0.1)


def test_dipy_tensor_by_explicit_refits_equals_the_closed_form(two_shell_voxels):
    voxels, gradients = two_shell_voxels
    voxels = np.maximum(voxels[:15], 1.0)
    options = {"fit_method": "OLS", "return_S0_hat": True}
    reference = DipyModel(dti.TensorModel, options).leave_one_out(voxels, gradients)
    closed = TensorModel().leave_one_out(voxels, gradients)
    dwis = gradients.dwis
    physical = (reference[:, dwis] < voxels.max()).all(axis=1)  # DIPY clips negative eigenvalues
    eigenvalues = (
        dti.TensorModel(gradient_table(gradients.bvals, bvecs=gradients.bvecs), **options)
        .fit(voxels)
        .evals
    )
    physical &= (eigenvalues > 1e-4).all(axis=1)
    assert physical.sum() >= 5
    np.testing.assert_allclose(reference[physical][:, dwis], closed[physical][:, dwis], rtol=1e-6)


def test_dipy_refits_do_not_depend_on_the_number_of_processes(tiny):
    voxels, gradients = some_voxels(tiny, 8)
    voxels[2] = 0
    lost = gradients.dwis[0]
    voxels[4, lost] = 0  # a lost slice: the others tell what was there
    model = DipyModel(dti.TensorModel, {"fit_method": "OLS"})
    one, two = (
        DipyModel(dti.TensorModel, {"fit_method": "OLS"}, n_procs=n).leave_one_out(
            voxels, gradients
        )
        for n in (1, 2)
    )
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one[:, lost], model.predict_one(voxels, gradients, lost))
    assert not one[2].any()
    assert one[4, gradients.dwis].min() > 0
    np.testing.assert_allclose(one[:, gradients.b0s[0]], voxels[:, gradients.b0s[1]], rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "DiffusionKurtosisModel",
        pytest.param("MapmriModel", marks=pytest.mark.slow),
        "FreeWaterTensorModel",
    ],
)
def test_other_dipy_models_predict_plausibly(two_shells, name):
    voxels, gradients = some_voxels(two_shells, 8)
    predicted = DipyModel(find_model(name)).leave_one_out(voxels, gradients)
    correlation = [np.corrcoef(p, v)[0, 1] for p, v in zip(predicted, voxels, strict=True)]
    assert np.median(correlation) > 0.8


def test_names_become_models_and_unknown_ones_list_the_known(two_shells):
    gradients = two_shells.gradients
    assert choose_model(gradients) == "gp-legendre"
    assert get_model("wls-dti", gradients) == TensorModel(weighted=True)
    assert get_model("dki", gradients, min_q_distance=0.1) == TensorModel(
        kurtosis=True, min_q_distance=0.1
    )
    assert get_model("dipy:TensorModel", gradients).model is dti.TensorModel
    with pytest.raises(EddymotionError, match="use one of auto, gp"):
        get_model("tensor", gradients)
    with pytest.raises(EddymotionError, match="TensorModel"):
        get_model("dipy:NoSuchModel", gradients)


def test_scheme_chooses_the_model_and_too_few_directions_are_refused():
    assert choose_model(shelled_scheme({1000: 5}, 1)) == "average"
    random = np.random.default_rng(0)
    directions = random.normal(size=(60, 3))
    cartesian = Gradients(np.linspace(0, 4000, 60), directions)
    assert choose_model(cartesian) == "gp-qspace"
    with pytest.raises(EddymotionError, match=r"model dki.*does not determine its 22"):
        design_matrix(shelled_scheme({1000: 30}, 2), kurtosis=True)
    with pytest.raises(EddymotionError, match="not available with the weighted"):
        TensorModel(weighted=True, min_q_distance=0.2).leave_one_out(
            np.ones((3, 32)), shelled_scheme({1000: 30}, 2)
        )
