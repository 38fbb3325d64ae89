"""Reads the meaning of each field of the models, which stands below the field in their source."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from pydantic import BaseModel

from runtime.manifest import entries, model


def read_field_texts() -> Mapping[str, Mapping[str, str]]:
    """The texts by the model's and the field's name; a model's own texts replace the inherited.

    Parsing takes some milliseconds, so only those who show the texts should ask for them.
    """
    own = {**_parse(model), **_parse(entries)}
    found: dict[str, Mapping[str, str]] = {}
    for kind in (*vars(model).values(), *vars(entries).values()):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            texts: dict[str, str] = {}
            for base in reversed(kind.__mro__):
                texts |= own.get(base.__name__, {})
            found[kind.__name__] = MappingProxyType(texts)
    return found


def _parse(module: ModuleType) -> dict[str, dict[str, str]]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: _texts_of(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _texts_of(node: ast.ClassDef) -> dict[str, str]:
    texts = {}
    for above, below in zip(node.body, node.body[1:], strict=False):
        if (
            isinstance(above, ast.AnnAssign)
            and isinstance(above.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            texts[above.target.id] = " ".join(textwrap.dedent(str(below.value.value)).split())
    return texts
