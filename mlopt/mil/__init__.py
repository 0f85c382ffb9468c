"""Model packages on disk and the ML programs in them: read, edited in place, written.

::

    package = open_package("model.mlpackage")
    with PackageWriter(package, "edited.mlpackage") as writer:
        edits = Edits()
        for program in package.programs:
            for node in program.nodes():
                ...  # writer.add_value(...), edits.replace(node.block, node.op, new_operations)
        edits.apply()
        writer.finish()

``open_package`` checks every reference and value, so that what passes can be read, copied and
rewritten without a further look. A ``Program`` is a view of protobuf messages: functions, and
``Node`` (an operation), ``Variable``, ``Constant`` and ``Consumer`` (a use), with names resolved.
The messages themselves are edited; a view is a snapshot. What is written appears complete or not at
all. ``plan_opset_raise`` raises a program to the opset of a newer ``Target``.

The message classes come from coremltools, which is not imported itself.
"""

from mlopt.mil.edits import Edits
from mlopt.mil.names import UniqueNames
from mlopt.mil.opening import open_package
from mlopt.mil.package import Package
from mlopt.mil.program import Constant, Consumer, Function, Node, Program, Variable
from mlopt.mil.raising.upgrade import OpsetRaise, plan_opset_raise
from mlopt.mil.targets import Target
from mlopt.mil.writer import PackageWriter, check_destination

__all__ = [
    "Constant",
    "Consumer",
    "Edits",
    "Function",
    "Node",
    "OpsetRaise",
    "Package",
    "PackageWriter",
    "Program",
    "Target",
    "UniqueNames",
    "Variable",
    "check_destination",
    "open_package",
    "plan_opset_raise",
]
