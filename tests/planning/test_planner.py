"""The planner, with losses that are made up."""

from types import SimpleNamespace

from mlopt.coreml import OpPalettizerConfig
from mlopt.planning.candidates import Form, WeightForms
from mlopt.planning.planner import Planner


class Interacting:
    """Losses of which that of both weights together is less than one alone."""

    def measure(self, pairs, *, are_quick=False):
        pass

    def is_measured(self, pair):
        return True

    def loss(self, i, n):
        return (0.1, 0.0)[n], "measured"

    def together(self, chosen):
        return 0.01 if chosen == (0, 0) else 0.5


def test_equal_forms_of_rules_for_other_weights_count_as_one_form():
    def weight(threshold):
        small = OpPalettizerConfig(nbits=4, weight_threshold=threshold)
        forms = (Form(small, None, None, 500), Form(None, None, None, 2000))
        return WeightForms(SimpleNamespace(size=1000), forms)

    weights = [weight(100), weight(200)]

    def size_of(chosen):
        return sum(each.forms[n].nbytes for each, n in zip(weights, chosen, strict=True))

    planned = Planner(weights, Interacting(), size_of, "near").for_size(2600)
    assert planned.forms == (0, 0)
