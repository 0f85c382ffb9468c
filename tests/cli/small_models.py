"""Models that ``mlopt run`` and ``mlopt compare`` are called with."""

import warnings

import coremltools as ct
from coremltools.converters.mil import Builder as mb


def saved(model, path):
    model.save(str(path))
    return path


def classifier(path, labels):
    """A classifier that gives its input as the scores of its classes."""
    program = mb.program(
        input_specs=[mb.TensorSpec((1, len(labels)))], opset_version=ct.target.iOS15
    )(lambda x: mb.identity(x=x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS15,
            classifier_config=ct.ClassifierConfig(labels),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    return saved(model, path)
