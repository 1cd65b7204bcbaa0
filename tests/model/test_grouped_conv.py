"""Every form of the grouped convolution against torch's, values and gradients."""

import jax
import numpy as np
import pytest
import torch

from musicssl.model import grouped_conv as module

FORMS = {
    "plain": (module.convolve, module.gradients),
    "packed": (module.convolve_packed, module.gradients_packed),
    "apart": (module.convolve_apart, module.gradients_apart),
    "windows": (module.convolve_windows, module.gradients_windows),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kernel, width, outputs, groups",
    [
        *((16, 192, 192, 4), (19, 96, 96, 16), (5, 48, 48, 3), (4, 520, 520, 4)),
        *((7, 96, 48, 16), (7, 32, 64, 4)),  # a decoder's first, and one that widens
    ],
)
def test_equal_to_torch(form, kernel, width, outputs, groups):
    rng = np.random.default_rng(kernel)
    shapes = (2, 23, width), (kernel, width // groups, outputs), (2, 23, outputs)
    x, weight, dy = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    theirs_x = torch.tensor(x.swapaxes(1, 2), requires_grad=True)
    theirs_w = torch.tensor(weight.transpose(2, 1, 0), requires_grad=True)
    y = torch.nn.functional.conv1d(theirs_x, theirs_w, padding=kernel // 2, groups=groups)[..., :23]
    y.backward(torch.tensor(dy.swapaxes(1, 2)))

    convolve, gradients = FORMS[form]
    np.testing.assert_allclose(
        convolve(x, weight, groups), y.detach().numpy().swapaxes(1, 2), atol=1e-3, rtol=1e-4
    )
    dx, dw = gradients(x, weight, dy, groups)
    np.testing.assert_allclose(dx, theirs_x.grad.numpy().swapaxes(1, 2), atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(dw, theirs_w.grad.numpy().transpose(2, 1, 0), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "width, groups, together", [(768, 16, 2), (1024, 16, 2), (96, 16, 16), (520, 4, 1)]
)
def test_groups_fill_the_lanes_of_a_tpu(width, groups, together):
    weight = jax.ShapeDtypeStruct((19, width // groups, width), np.float32)
    assert module.groups_together(weight, groups) == together
