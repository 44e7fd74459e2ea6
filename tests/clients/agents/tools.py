"""The two tools of every Python agent, and how each script is told what to do. Runs in the client's environment."""

import os
import sys

QUESTION = "How warm is it in Paris, in Fahrenheit?"
URL = os.environ.get("SMALLCALL_URL", "")
"""Of the gateway, with `/v1`."""
WAY, STREAMED = (sys.argv[1], sys.argv[2] == "stream") if len(sys.argv) > 2 else ("", False)


def get_weather(city: str) -> str:
    """The temperature in a city, in degrees Celsius."""
    if city != "Paris":
        raise ValueError(f"unknown city: {city}")
    return "20 degrees Celsius"


def to_fahrenheit(celsius: float) -> str:
    """Degrees Celsius in Fahrenheit."""
    return f"{round(celsius * 9 / 5 + 32)} degrees Fahrenheit"


TOOLS = {"get_weather": get_weather, "to_fahrenheit": to_fahrenheit}
SCHEMAS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "to_fahrenheit": {
        "type": "object",
        "properties": {"celsius": {"type": "number"}},
        "required": ["celsius"],
        "additionalProperties": False,
    },
}


def called(name: str, arguments: dict) -> tuple[str, bool]:
    """What a tool gives, and whether it failed."""
    try:
        return TOOLS[name](**arguments), False
    except ValueError as error:
        return f"error: {error}", True
