"""The rarer models are what they claim to be."""

from __future__ import annotations

import pytest

from tests import edited_models, judges, odd_models
from tests.reading import constants, elements, place_of, tree


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    built = {}

    def get(name):
        if name not in built:
            built[name] = odd_models.build(name, tmp_path_factory.mktemp("odd"))
        return built[name]

    return get


@pytest.mark.parametrize("name", odd_models.KINDS)
def test_coremltools_loads_those_that_say_so(name, package):
    if odd_models.KINDS[name].loads:
        assert judges.load_programs(package(name))
    else:
        with pytest.raises((NotImplementedError, AssertionError, KeyError, ValueError)):
            judges.load_programs(package(name))


@pytest.mark.parametrize("name", odd_models.KINDS)
def test_a_package_equals_itself(name, package):
    assert judges.messages_equal_except(package(name), package(name)) == []


def description(package):
    return judges.spec_and_weights(package)[0].description


def test_inputs_are_flexible(package):
    for feature in description(package("flexible_ranges")).input:
        ranges = feature.type.multiArrayType.shapeRange.sizeRanges
        assert ranges[1].upperBound > ranges[1].lowerBound
    image, array = description(package("flexible_shapes")).input
    assert len(image.type.imageType.enumeratedSizes.sizes) == 2
    assert len(array.type.multiArrayType.enumeratedShapes.shapes) == 2


def test_images_have_every_colour_layout(package):
    described = description(package("images"))
    layouts = {f.name: f.type.imageType.colorSpace for f in described.input}
    assert len(set(layouts.values())) == 4
    assert all(f.type.WhichOneof("Type") == "imageType" for f in described.output)


def test_inputs_have_defaults_and_labels_are_integers(package):
    optional = [f.type.isOptional for f in description(package("optional_inputs")).input]
    assert sorted(optional) == [False, True, True]
    labels = description(package("integer_classifier")).output
    assert "int64Type" in {f.type.WhichOneof("Type") for f in labels} | {
        f.type.dictionaryType.WhichOneof("KeyType") for f in labels
    }
    assert len(description(package("key_value_cache")).state) == 4


def test_functions_share_all_some_and_none(package):
    path = package("several_functions")
    place = {
        (function, name): place_of(elements(op))
        for (_, function, name, _), op in constants(path).items()
        if name.endswith("weight_to_fp16")
    }
    for name, sharing in (("first", {"same", "adapted"}), ("second", {"same"})):
        key = f"{name}_weight_to_fp16"
        for other in ("same", "adapted", "other"):
            shared = place[other, key] == place["base", key]
            assert shared == (other in sharing), (name, other)
    assert description(path).defaultFunctionName == "adapted"


def test_pipelines_are_nested_and_mixed(package):
    spec, _ = judges.spec_and_weights(package("mixed_pipeline"))
    kinds = [(m.WhichOneof("Type"), m.specificationVersion) for m in tree(spec)]
    assert kinds == [
        ("pipelineClassifier", 8),
        ("featureVectorizer", 1),
        ("neuralNetwork", 4),
        ("pipeline", 8),
        ("mlProgram", 6),
        ("mlProgram", 8),
        ("mlProgram", 7),
        ("glmClassifier", 1),
    ]


def files(package):
    return sorted(path.name for path in package.rglob("*.bin"))


def test_weight_files_are_as_many_as_claimed(package):
    assert files(package("two_weight_files")) == ["second.bin", "weight.bin"]
    assert files(package("every_dtype")) == ["dtypes.bin", "weight.bin"]
    assert files(package("shared_pipeline")) == ["weight.bin"]
    assert files(package("weights_in_the_message")) == []
    assert files(package("small_constants")) == []
    values = edited_models.stored_values(judges.spec_and_weights(package("two_spellings"))[0])
    assert len({value.blobFileValue.fileName for value in values}) == 2


def test_one_name_stands_for_two_weights(package):
    twins = [elements(op) for key, op in constants(package("twins")).items() if key[2] == "twin"]
    assert len({place_of(value) for value in twins}) == 2
    shared = constants(package("shared_in_blocks"))
    names = ("outside", "inside", "also_inside")
    assert len({place_of(elements(shared[0, "main", name, 0])) for name in names}) == 1
