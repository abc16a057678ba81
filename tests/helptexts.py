"""Which fields of a dataclass lack the docstring that `--help` shows for them."""

import ast
import inspect


def fields_without_text(options):
    body = ast.parse(inspect.getsource(options)).body[0].body
    following = [*body[1:], None]
    return [
        field.target.id
        for field, text in zip(body, following, strict=True)
        if isinstance(field, ast.AnnAssign) and not isinstance(text, ast.Expr)
    ]
