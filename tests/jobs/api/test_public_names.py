"""The public names: each is there, told to type checkers, documented, typed, and described in docs/python.md."""

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import raysift
from raysift.config import RunConfig
from raysift.jobs.commands.method_help import main_settings
from raysift.methods import METHODS, function_name

ROOT = Path(__file__).resolve().parents[3]
NAMES = [name for name in raysift.__all__ if not name.startswith("_")]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(raysift, name))]
RECORDS = [name for name in NAMES if name not in FUNCTIONS and not issubclass(getattr(raysift, name), Exception)]
PAGE = (ROOT / "docs" / "python.md").read_text()


def told_to_type_checkers() -> set[str]:
    [block] = [node for node in ast.parse((ROOT / "engine/__init__.py").read_text()).body if isinstance(node, ast.If)]
    found = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {str(name) for name in found - {None}} | {
        ast.unparse(node.target) for node in block.body if isinstance(node, ast.AnnAssign)
    }


def test_type_checkers_are_told_the_names_that_are_there():
    assert told_to_type_checkers() == set(NAMES)


def test_methods_are_told_with_a_target_where_they_take_one():
    text = (ROOT / "engine/__init__.py").read_text()
    told = dict(re.findall(r"^    (\w+): (TargetMethod|PoolMethod)$", text, re.M))
    kinds = {True: "TargetMethod", False: "PoolMethod"}
    assert told == {function_name(name): kinds[method.takes_target] for name, method in METHODS.items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_listed_and_documented_and_on_the_page(name):
    assert name in dir(raysift)
    assert inspect.getdoc(getattr(raysift, name))
    assert re.search(rf"\b{name}\b", PAGE)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_typed_and_takes_options_by_name(name):
    signature = inspect.signature(getattr(raysift, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for one in signature.parameters.values():
        assert one.annotation is not inspect.Parameter.empty, one.name
        is_option = one.default is not inspect.Parameter.empty and one.name not in ("pool", "target", "ids")
        if is_option:
            assert one.kind is inspect.Parameter.KEYWORD_ONLY, one.name


@pytest.mark.parametrize("name", RECORDS)
def test_what_a_record_offers_is_documented_and_typed(name):
    for key, one in vars(getattr(raysift, name)).items():
        if key.startswith("_"):
            continue
        body = one.fget if isinstance(one, property) else getattr(one, "func", one)
        if inspect.isfunction(body):
            assert inspect.getdoc(body), key
            assert inspect.signature(body).return_annotation is not inspect.Signature.empty, key


@pytest.mark.parametrize("name", METHODS)
def test_help_of_a_method_tells_its_arguments_settings_and_defaults(name):
    function = getattr(raysift, function_name(name))
    told = function.__doc__
    assert METHODS[name].summary in told and "--" not in told
    for one in inspect.signature(function).parameters:
        assert f"\n{one}: " in told, one
    for line in main_settings(name):
        assert line.removeprefix(f"- {name}.") in told
    [example] = re.findall(r"Example: (.*)", told)
    call = ast.parse(example).body[0].value
    inspect.signature(function).bind(*call.args, **{one.arg: one.value for one in call.keywords})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_function_that_can_be_sent_to_another_process(name):
    function = getattr(raysift, function_name(name))
    assert function is getattr(raysift, function_name(name))
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("name", METHODS)
def test_no_setting_of_a_method_has_the_name_of_a_common_one(name):
    """Otherwise `raysift.less(..., NAME=...)` could mean both."""
    taken = RunConfig.model_fields.keys() | inspect.signature(raysift.select).parameters.keys()
    assert not METHODS[name].Config.model_fields.keys() & taken
