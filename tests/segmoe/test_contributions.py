"""What picks contributed, against what an observer of every torch call adds up in float64, family by family."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import segmoe
from segmoe import contributions
from segmoe.events import Routed
from segmoe.modules import experts_modules
from tests.families.sweep import build, run
from tests.families.test_sweep import CLASSES, family
from tests.tiny import RecordingSink

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
TWO_IN_A_LAYER = "Ernie4_5_VLMoeForConditionalGeneration"


class Everything(TorchFunctionMode):
    """Notes what each experts module adds to which rows, and the layers' outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inside = False
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.layers: list[tuple[list[Any], torch.Tensor, torch.Tensor]] = []  # calls, ids, layer's output
        self.handles = []
        for place in experts_modules(model):
            module, block = model.get_submodule(place.path), model.get_submodule(place.block)
            self.handles += [
                module.register_forward_pre_hook(self.before, with_kwargs=True, prepend=True),
                module.register_forward_hook(self.after),
                block.register_forward_hook(self.layer_done, prepend=True),
            ]

    def before(self, module: Any, args: Any, kwargs: Any) -> None:
        self.inside, self.calls, self.ids = True, [], (*args, *kwargs.values())[1]

    def after(self, module: Any, args: Any, output: Any) -> None:
        self.inside = False

    def layer_done(self, module: Any, args: Any, output: Any) -> None:
        h = output[0] if isinstance(output, tuple) else output
        self.layers.append((self.calls, self.ids, h.reshape(-1, h.shape[-1]).clone()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.inside and func is torch.Tensor.index_add_:
            self.calls.append((args[2].clone(), args[3].detach().clone()))
        return func(*args, **(kwargs or {}))


def assert_measured(event: Routed, calls: list[Any], ids: torch.Tensor, h: torch.Tensor) -> None:
    found, (rows, k) = event.contribution, ids.shape
    assert found is not None
    c = torch.zeros(rows, k, h.shape[-1], dtype=torch.float64)
    for expert, (picked, outputs) in zip(sorted(set(ids.flatten().tolist())), calls, strict=True):
        for row, output in zip(picked.tolist(), outputs, strict=True):
            c[row, ids[row].tolist().index(expert)] = output.double()
    h = h.double()
    near = {"rtol": 1e-5, "atol": 1e-5 * float(h.norm(dim=-1).max())}
    np.testing.assert_allclose(found.c_norm, c.norm(dim=-1), **near)
    units = torch.nn.functional.normalize(c, dim=-1)
    np.testing.assert_allclose(found.sum_unit_norm, units.sum(dim=1).norm(dim=-1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.h_norm, h.norm(dim=-1), **near)
    scale = float((c.norm(dim=-1) * h.norm(dim=-1)[:, None]).max())
    np.testing.assert_allclose(found.h_dot_c, (c * h[:, None]).sum(-1), rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("chunk", [contributions.CHUNK_NUMBERS, 300], ids=["whole", "in chunks"])
@pytest.mark.parametrize("name", [name for name in CLASSES if name != TWO_IN_A_LAYER])
def test_contributions_are_what_the_family_adds(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "CHUNK_NUMBERS", chunk)
    model, sink = build(family(name)), RecordingSink()
    unobserved = run(model)
    with segmoe.attach(model, sink, capture="contribution"):
        reference = Everything(model)
        with reference:
            observed = run(model)
    assert all(torch.equal(observed[key], unobserved[key]) for key in unobserved)
    assert len(sink.of(Routed)) == len(reference.layers) > 2
    shown = [event.contribution is not None for event in sink.of(Routed)]
    assert any(shown)
    for event, (calls, ids, h) in zip(sink.of(Routed), reference.layers, strict=True):
        assert np.array_equal(event.topk_ids, ids.numpy())
        if event.contribution is not None:
            assert_measured(event, calls, ids, h)
        else:
            assert h.shape != (len(ids), calls[0][1].shape[-1]), "the layer's output is of the same rows and width"
