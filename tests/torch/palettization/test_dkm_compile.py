"""Compiled models that are palettized in training, against the same ones as they are."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from mlopt.torch.palettization import DKMPalettizer, DKMPalettizerConfig

STEPS = 4


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.last = nn.Linear(32, 8)

    def forward(self, x):
        x = torch.relu(self.first(2 * x)) + 1
        return torch.tanh(self.last(torch.sigmoid(x)))


def prepared(**options):
    torch.manual_seed(0)
    rules = {"global_config": {"weight_threshold": 0, "n_bits": 2} | options}
    palettizer = DKMPalettizer(Network(), DKMPalettizerConfig.from_dict(rules))
    return palettizer, palettizer.prepare()


def train(model, palettizer, parameters):
    """The outputs of each step and of evaluation; the graphs that were compiled until each."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    outputs, graphs = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = model(torch.randn(4, 16, generator=generator))
        output.square().mean().backward()
        optimizer.step()
        palettizer.step()
        outputs.append(output.detach())
        graphs.append(counters["stats"]["unique_graphs"])
    model.eval()
    outputs.append(model(torch.randn(4, 16, generator=generator)).detach())
    return outputs, graphs


@pytest.mark.parametrize(
    "options",
    [{}, {"milestone": 2}, {"enable_per_channel_scale": True}, {"quantize_activations": True}],
    ids=str,
)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
# the compiler's own, where it goes on after a break in a graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.covering(1)
def test_a_compiled_model_trains_as_it_does_without(backend, options):
    torch._dynamo.reset()
    counters.clear()
    results = []
    for compiles in (False, True):
        palettizer, model = prepared(**options)
        run = torch.compile(model, backend=backend) if compiles else model
        outputs, graphs = train(run, palettizer, model.parameters())
        results.append((outputs, model.state_dict()))
    for expected, found in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for name, expected in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], expected, rtol=1e-5, atol=1e-6)
    # what lies between palettized modules is compiled, and not again in every step
    assert graphs[0] > 0
    assert graphs[-1] == graphs[-2]
