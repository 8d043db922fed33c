"""Rows from the leaderboard's public files: the test writes a folder of the same layout."""

import json

from data_utils.sources import load_rows
from demo import leaderboard_rows
from eval_utils.ast_match import ast_match


def test_questions_and_accepted_values_become_rows(tmp_path, monkeypatch, capsys):
    function = {
        "name": "weather",
        "description": "d",
        "parameters": {
            "type": "dict",
            "properties": {
                "city": {"type": "string", "description": "A city."},
                "days": {"type": "integer", "description": "How many.", "default": 3},
                "kind": {"type": "array", "items": {"type": "string", "enum": ["rain", "wind"]}},
                "place": {"type": "dict", "properties": {"country": {"type": "string", "description": "c"}}},
            },
            "required": ["city", "kind"],
        },
    }
    question = [[{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Rain in Rome?"}]]
    truth = {"city": ["Rome", "Roma"], "days": [3, ""], "kind": [["rain"]], "place": [{"country": ["Italy", "IT"]}]}
    (tmp_path / "possible_answer").mkdir()
    monkeypatch.setattr(leaderboard_rows, "CATEGORIES", ["multiple", "irrelevance"])
    for category in leaderboard_rows.CATEGORIES:
        record = {"id": f"{category}_0", "question": question, "function": [function]}
        (tmp_path / f"BFCL_v4_{category}.json").write_text(json.dumps(record) + "\n")
    answer = {"id": "multiple_0", "ground_truth": [{"weather": truth}]}
    (tmp_path / "possible_answer" / "BFCL_v4_multiple.json").write_text(json.dumps(answer) + "\n")
    leaderboard_rows.main(tmp_path, tmp_path / "rows.jsonl")
    assert "2 rows in" in capsys.readouterr().out
    (calls, none), bad = load_rows(str(tmp_path / "rows.jsonl"))
    assert not bad and calls.query == "Be brief.\n\nRain in Rome?" and json.loads(none.answers) == []
    tools, answers = json.loads(calls.tools), json.loads(calls.answers)
    assert {name: spec["type"] for name, spec in tools[0]["parameters"].items()} == {
        "city": "str", "days": "int, optional", "kind": "List[str]", "place": "dict, optional",
    }  # fmt: skip
    assert tools[0]["parameters"]["kind"]["description"] == 'One of: "rain", "wind".'
    assert tools[0]["parameters"]["place"]["description"] == "Keys: country (str): c."
    arguments = {"city": "Rome", "kind": ["rain"], "place": {"country": "Italy"}}
    assert answers == [{"name": "weather", "arguments": arguments}]
    assert ast_match(answers, json.loads(calls.acceptable), tools) and calls.category == "multiple"
    assert json.loads(calls.required) == {"weather": ["city", "kind"]}
