"""The models that the tests use are what they claim to be, and the judges can tell."""

import numpy as np
import pytest

from tests import judges, models

CASES = [(kind, target) for target in models.TARGETS for kind in models.kinds(target)]


@pytest.mark.parametrize(("kind", "target"), CASES)
def test_coremltools_loads_each_kind_for_each_target(kind, target, package_of):
    package = package_of(kind, target)
    version = 6 + models.TARGETS.index(target)
    assert judges.spec_and_weights(package)[0].specificationVersion == version
    constants = judges.decompressed_constants(package)
    assert any(value.size > 2048 and value.dtype.kind == "f" for value in constants.values())


@pytest.mark.parametrize("kind", models.kinds("iOS18"))
def test_a_saved_model_equals_itself(kind, tmp_path):
    model = models.build(kind, "iOS18")
    path = tmp_path / "saved.mlpackage"
    model.save(str(path))
    assert judges.messages_equal_except(model, path) == []


@pytest.mark.parametrize("kind", models.kinds("iOS16"))
def test_float32_models_hold_float32_weights(kind, package_of):
    constants = judges.decompressed_constants(package_of(kind, "iOS16", "float32"))
    dtypes = {value.dtype for value in constants.values() if value.size > 2048}
    assert dtypes == {np.dtype(np.float32)}


def test_the_embedding_is_tied_and_masks_are_extreme(package_of):
    package = package_of("transformer", "iOS15")
    constants = judges.decompressed_constants(package)
    assert constants["embedding_weight_to_fp16"].shape == (96, 64)
    spec, _ = judges.spec_and_weights(package)
    users = [
        op.type
        for op in judges.operations(spec.mlProgram.functions["main"])
        for argument in op.inputs.values()
        if any(binding.name == "embedding_weight_to_fp16" for binding in argument.arguments)
    ]
    assert sorted(users) == ["gather", "linear"]
    assert np.isneginf(constants["layers_0_mask_to_fp16"]).sum() == 48 * 47 // 2
    assert constants["layers_1_mask_to_fp16"].min() == np.float16(-1e4)


def test_functions_share_blobs():
    spec, _ = judges.spec_and_weights(models.multifunction())
    offsets = {}
    for name, function in spec.mlProgram.functions.items():
        for op in judges.operations(function):
            if op.type == "const" and op.attributes["val"].HasField("blobFileValue"):
                offsets[name, op.outputs[0].name] = op.attributes["val"].blobFileValue.offset
    for shared in ("first_weight_to_fp16", "second_weight_to_fp16"):
        assert offsets["base", shared] == offsets["adapted", shared]
    own = "head_0_weight_to_fp16"
    assert offsets["base", own] != offsets["adapted", own]


def test_every_redefined_op_is_there():
    spec, _ = judges.spec_and_weights(models.redefined("iOS15"))
    types = {op.type for op in judges.operations(spec.mlProgram.functions["main"])}
    assert types >= set(judges.GAINED_INPUTS)


def test_a_classifier_carries_a_full_description():
    spec, _ = judges.spec_and_weights(models.classifier())
    metadata = spec.description.metadata
    assert metadata.author == "A. Author"
    assert metadata.userDefined["trained on"] == "nothing at all"
    assert spec.description.predictedFeatureName == "classLabel"


def change_float(spec):
    """Change one number of the first constant that is stored in the message."""
    for op in judges.operations(spec.mlProgram.functions["main"]):
        floats = op.attributes["val"].immediateValue.tensor.floats.values
        if op.type == "const" and floats:
            floats[0] += 1
            return op.outputs[0].name
    raise AssertionError("no float in the message")


def test_comparison_reports_each_kind_of_difference(package_of, tmp_path):
    package = package_of("matmuls", "iOS15", "float32")
    spec, _ = judges.spec_and_weights(package)

    def compare(edit, **kwargs):
        import coremltools as ct

        edited = type(spec)()
        edited.CopyFrom(spec)
        edit(edited)
        weights = package / "Data" / "com.apple.CoreML" / "weights"
        model = ct.models.MLModel(edited, weights_dir=str(weights), skip_model_load=True)
        return judges.messages_equal_except(package, model, **kwargs)

    def block(edited):
        (only,) = edited.mlProgram.functions["main"].block_specializations.values()
        return only

    def value_of(edited, name):
        ops = judges.operations(edited.mlProgram.functions["main"])
        return next(op.attributes["val"] for op in ops if op.outputs[0].name == name)

    assert compare(lambda edited: None) == []
    (line,) = compare(lambda edited: edited.description.metadata.userDefined.update({"k": "v"}))
    assert "userDefined[k]" in line
    (line,) = compare(lambda edited: block(edited).operations[0].inputs["more"].SetInParent())
    assert "inputs[more]" in line

    def swap(edited):
        offset = value_of(edited, "both").blobFileValue.offset
        value_of(edited, "y").blobFileValue.offset = offset

    (line,) = compare(swap)
    assert line.endswith("the blob's bytes differ")
    (line,) = compare(lambda edited: None, changed=["y"])
    assert line == "y: expected to change, and did not"

    def palettize(edited):
        op = next(op for op in block(edited).operations if op.outputs[0].name == "y")
        op.type = "constexpr_lut_to_dense"
        del op.attributes["val"]

    assert compare(palettize, changed=["y"]) == []
    assert len(compare(palettize)) == 2
    assert any("removed" in line for line in compare(lambda e: block(e).operations.pop(0)))


def test_loader_refuses_a_constant_of_another_type(package_of):
    import coremltools as ct

    package = package_of("matmuls", "iOS16")
    spec, folder = judges.spec_and_weights(package)
    for op in judges.operations(spec.mlProgram.functions["main"]):
        if op.outputs[0].name == "y":
            op.outputs[0].type.tensorType.dimensions[0].constant.size += 1
    model = ct.models.MLModel(spec, weights_dir=str(folder), skip_model_load=True)
    with pytest.raises(AssertionError, match="declared"):
        judges.load_program(model)
