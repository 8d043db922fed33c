import pytest

from data_utils.formats import parameter_schema, tool_schema, type_schema


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        ("str", {"type": "string"}),
        (" INT ", {"type": "integer"}),
        ("float", {"type": "number"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("List[List[float]]", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        ("list", {"type": "array"}),
        ("Dict[str, float]", {"type": "object", "additionalProperties": {"type": "number"}}),
        ("dict", {"type": "object"}),
        ("Union[str, int]", {"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ("int | None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ("Optional[bool]", {"anyOf": [{"type": "boolean"}, {"type": "null"}]}),
        ("Tuple[int, int]", {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer"}}),
        ("Tuple[float, ...]", {"type": "array", "items": {"type": "number"}}),
        ("Callable[[float], float]", {}),
        ("Union[str, Any]", {}),
        ("", {}),
        ("List[", {"type": "array"}),
    ],
)
def test_informal_types(kind, schema):
    assert type_schema(kind) == schema


def test_a_tool_says_what_may_be_left_out_in_two_ways():
    tool = {
        "name": "f",
        "parameters": {
            "a": {"type": "str"},
            "b": {"type": "List[int], optional"},
            "c": {"type": "int", "default": 3},
            "d": {"type": "str, optional, defaults to 'x'"},
            "e": {"enum": ["p", "q"], "type": "str"},
        },
    }
    schema = tool_schema(tool)
    assert schema["required"] == ["a", "e"] and schema["additionalProperties"] is False
    assert schema["properties"]["b"] == {"type": "array", "items": {"type": "integer"}}
    assert schema["properties"]["d"] == {"type": "string"}
    assert schema["properties"]["e"] == {"type": "string", "enum": ["p", "q"]}
    assert tool_schema({"name": "g"})["properties"] == {} and parameter_schema({}) == {}


def test_types_nested_without_end_accept_anything():
    assert type_schema("List[" * 3000 + "int" + "]" * 3000) == {}
