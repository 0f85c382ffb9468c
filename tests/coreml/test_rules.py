from hypothesis import given
from hypothesis import strategies as st

from mlopt.coreml.config import OptimizationConfig
from mlopt.coreml.op_config import OpPalettizerConfig
from mlopt.coreml.rules import resolve, unmatched_rules
from mlopt.requests.rules import UnmatchedRule

TWO, FOUR, EIGHT = (OpPalettizerConfig(nbits=nbits) for nbits in (2, 4, 8))
UNIQUE = OpPalettizerConfig(mode="unique")


def decided(config, weight="w", consumers=(("op", "linear"),)):
    resolution = resolve(config, weight, consumers)
    return resolution.config, resolution.rule


# --- one consumer: which rule decides ------------------------------------------------------------


def test_nothing_said():
    assert decided(OptimizationConfig()) == (None, "no rule")


def test_global():
    assert decided(OptimizationConfig(FOUR)) == (FOUR, "global_config")


def test_name_of_weight_then_name_of_op_then_type_then_global():
    config = OptimizationConfig(TWO, {"linear": FOUR}, {"op": EIGHT, "w": None})
    assert decided(config) == (None, "op_name_configs['w']")
    del config.op_name_configs["w"]
    assert decided(config) == (EIGHT, "op_name_configs['op']")
    del config.op_name_configs["op"]
    assert decided(config) == (FOUR, "op_type_configs['linear']")
    del config.op_type_configs["linear"]
    assert decided(config) == (TWO, "global_config")


def test_none_in_a_rule_leaves_alone_what_global_would_take():
    assert decided(OptimizationConfig(FOUR, {"linear": None}))[0] is None


def test_globs():
    config = OptimizationConfig(TWO, {"conv*": FOUR}, {"encoder.*.query*": None})
    name = "encoder.3.query_weight"
    assert decided(config, name) == (None, "op_name_configs['encoder.*.query*']")
    assert decided(config, consumers=[("c", "conv_transpose")]) == (
        FOUR,
        "op_type_configs['conv*']",
    )
    # Case matters, on every system.
    assert decided(config, consumers=[("c", "CONV")])[0] is TWO


def test_an_exact_name_beats_a_glob_written_before_it():
    config = OptimizationConfig(None, {"*": TWO, "linear": FOUR}, {"w*": TWO, "w": EIGHT})
    assert decided(config) == (EIGHT, "op_name_configs['w']")
    assert decided(config, "x") == (FOUR, "op_type_configs['linear']")


def test_an_exact_name_of_the_op_beats_a_glob_over_the_name_of_the_weight():
    config = OptimizationConfig(None, None, {"conv*": FOUR, "conv1": None})
    assert decided(config, "conv1_weight", [("conv1", "conv")])[0] is None


def test_the_first_written_glob_wins():
    config = OptimizationConfig(None, None, {"op*": TWO, "w*": FOUR})
    assert decided(config)[0] is TWO
    config = OptimizationConfig(None, None, {"w*": FOUR, "op*": TWO})
    assert decided(config)[0] is FOUR


def test_a_name_that_looks_like_a_glob_matches_itself():
    config = OptimizationConfig(None, None, {"layers[0].weight": FOUR})
    assert decided(config, "layers[0].weight")[0] is FOUR


def test_a_weight_that_no_operation_reads():
    assert decided(OptimizationConfig(FOUR, {"*": TWO}), consumers=[])[0] is FOUR
    assert decided(OptimizationConfig(FOUR, None, {"w*": TWO}), consumers=[])[0] is TWO


# --- several consumers: one decision -------------------------------------------------------------

TIED = (("embed", "gather"), ("head", "linear"))


def test_agreement_has_no_note():
    for config in (
        OptimizationConfig(FOUR),
        OptimizationConfig(None, {"gather": FOUR, "linear": OpPalettizerConfig(nbits=4)}),
        OptimizationConfig(FOUR, {"gather": FOUR}),
    ):
        resolution = resolve(config, "w", TIED)
        assert resolution.config == FOUR
        assert resolution.note is None
    assert resolution.rule == "op_type_configs['gather']"


def test_the_name_of_the_weight_settles_it():
    config = OptimizationConfig(TWO, {"gather": None, "linear": EIGHT}, {"w": FOUR})
    resolution = resolve(config, "w", TIED)
    assert (resolution.config, resolution.note) == (FOUR, None)


def test_every_name_of_a_weight_settles_it():
    config = OptimizationConfig(TWO, {"gather": None}, {"other": FOUR})
    resolution = resolve(config, "w", TIED, aliases=["other"])
    assert (resolution.config, resolution.rule) == (FOUR, "op_name_configs['other']")
    assert resolution.note is None
    globbed = OptimizationConfig(TWO, None, {"oth*": EIGHT})
    assert resolve(globbed, "w", TIED, aliases=["other"]).config == EIGHT
    assert resolve(globbed, "w", TIED).config == TWO
    assert resolve(globbed, "w", (), aliases=["other"]).config == EIGHT


def test_names_of_a_weight_that_disagree_get_the_more_careful_rule():
    for first, second in (("w", "other"), ("other", "w")):
        config = OptimizationConfig(TWO, None, {first: FOUR, second: EIGHT})
        resolution = resolve(config, "w", TIED, aliases=["other"])
        assert (resolution.config, resolution.rule) == (EIGHT, f"op_name_configs['{second}']")
        assert resolution.note == (
            "its users ask for different things, the more careful one wins: "
            f"constant '{second}' 8-bit kmeans, per tensor (op_name_configs['{second}']); "
            f"constant '{first}' 4-bit kmeans, per tensor (op_name_configs['{first}'])"
        )


def test_the_more_specific_rule_wins():
    config = OptimizationConfig(EIGHT, {"linear": None}, {"embed": TWO})
    resolution = resolve(config, "w", TIED)
    assert (resolution.config, resolution.rule) == (TWO, "op_name_configs['embed']")
    assert resolution.note == (
        "its users ask for different things, the more specific one wins: "
        "gather 'embed' 2-bit kmeans, per tensor (op_name_configs['embed']); "
        "linear 'head' to be left alone (op_type_configs['linear'])"
    )


def test_among_equals_the_more_careful_rule_wins():
    def winner(first, second):
        both = [
            resolve(OptimizationConfig(None, {"gather": a, "linear": b}), "w", TIED)
            for a, b in ((first, second), (second, first))
        ]
        assert both[0].config == both[1].config
        assert "more careful" in both[0].note
        return both[0].config

    grouped = OpPalettizerConfig(nbits=4, granularity="per_grouped_channel", group_size=16)
    smaller = OpPalettizerConfig(nbits=4, granularity="per_grouped_channel", group_size=8)
    vectors = OpPalettizerConfig(nbits=8, cluster_dim=4)
    assert winner(FOUR, None) is None
    assert winner(UNIQUE, None) is None
    assert winner(UNIQUE, EIGHT) is UNIQUE
    assert winner(FOUR, EIGHT) is EIGHT
    assert winner(FOUR, grouped) is grouped
    assert winner(grouped, smaller) is smaller
    assert winner(FOUR, vectors) is FOUR


def test_a_repeated_consumer_counts_once():
    config = OptimizationConfig(FOUR, {"linear": EIGHT})
    consumers = [("a", "linear"), ("a", "linear"), ("b", "gather")]
    assert resolve(config, "w", consumers).note.count("linear 'a'") == 1


@given(st.data())
def test_the_order_of_consumers_does_not_matter(data):
    choice = st.sampled_from([None, TWO, FOUR, EIGHT, UNIQUE])
    config = OptimizationConfig(
        data.draw(choice),
        data.draw(st.dictionaries(st.sampled_from(["conv", "lin*", "*"]), choice)),
        data.draw(st.dictionaries(st.sampled_from(["w", "a", "b*", "*"]), choice)),
    )
    consumers = [("a", "conv"), ("b", "linear"), ("c", "gather")]
    shuffled = data.draw(st.permutations(consumers))
    assert resolve(config, "w", shuffled).config == resolve(config, "w", consumers).config


# --- rules without use ---------------------------------------------------------------------------

WEIGHTS = [("conv1_weight", [("conv1", "conv")]), ("head_weight", [("head", "linear")])]
MODEL = {"op_names": ["conv1", "head", "relu1"], "op_types": ["conv", "linear", "relu"]}


def test_rules_that_match():
    config = OptimizationConfig(
        None,
        {"conv": FOUR, "li*": FOUR},
        {"conv1": None, "head_weight": FOUR, "*_weight": TWO},
    )
    assert unmatched_rules(config, WEIGHTS, **MODEL) == ()


def test_rules_that_match_nothing():
    config = OptimizationConfig(None, {"convolution": FOUR}, {"conv_1": None, "zzz*": FOUR})
    types, name, glob = unmatched_rules(config, WEIGHTS, **MODEL)
    assert types == UnmatchedRule(
        "op_type_configs", "convolution", types.near_matches, types.reason
    )
    assert "no operation of this type" in types.reason
    assert name.near_matches[0] == "conv1"
    assert "no weight and no operation of this name" in name.reason
    assert str(name).startswith("op_name_configs['conv_1']: the model has no weight")
    assert "did you mean 'conv1'" in str(name)
    assert glob.near_matches == ()
    assert "did you mean" not in str(glob)


def test_an_operation_without_weights_exists_all_the_same():
    config = OptimizationConfig(None, {"relu": FOUR}, {"relu1": FOUR})
    types, name = unmatched_rules(config, WEIGHTS, **MODEL)
    assert types.reason == "the model has operations of this type, but none has weights"
    assert name.reason == "the model has an operation of this name, but it has no weights"


def test_a_rule_in_the_wrong_place():
    config = OptimizationConfig(None, {"conv1": FOUR}, {"linear": FOUR})
    types, name = unmatched_rules(config, WEIGHTS, **MODEL)
    assert types.reason.endswith("put it under op_name_configs")
    assert name.reason.endswith("put it under op_type_configs")


def test_unmatched_rule_as_plain_values():
    rule = UnmatchedRule("op_name_configs", "a", ("b",), "gone")
    assert rule.as_dict() == {
        "kind": "op_name_configs",
        "key": "a",
        "near_matches": ["b"],
        "reason": "gone",
    }
