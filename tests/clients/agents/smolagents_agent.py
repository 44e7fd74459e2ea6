"""Hugging Face's smolagents: the agent that calls tools. Its answer is a tool call, too."""

import contextlib
import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool
from tools import QUESTION, STREAMED, URL
from tools import get_weather as weather
from tools import to_fahrenheit as fahrenheit


@tool
def get_weather(city: str) -> str:
    """The temperature in a city, in degrees Celsius.

    Args:
        city: Its name.
    """
    return weather(city)


@tool
def to_fahrenheit(celsius: float) -> str:
    """Degrees Celsius in Fahrenheit.

    Args:
        celsius: The temperature.
    """
    return fahrenheit(celsius)


model = OpenAIServerModel(model_id="gpt-x", api_base=URL, api_key="unused")
with contextlib.redirect_stdout(sys.stderr):
    agent = ToolCallingAgent(
        tools=[get_weather, to_fahrenheit], model=model, stream_outputs=STREAMED, max_steps=6, verbosity_level=0
    )
    answer = agent.run(QUESTION)
print(answer)
