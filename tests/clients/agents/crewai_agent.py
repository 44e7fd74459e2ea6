"""A crew of one with two tools."""

import contextlib
import os
import sys

os.environ |= {"CREWAI_TRACING_ENABLED": "false", "CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "true"}

from tools import QUESTION, STREAMED, URL
from tools import get_weather as weather
from tools import to_fahrenheit as fahrenheit

with contextlib.redirect_stdout(sys.stderr):
    from crewai import LLM, Agent, Crew, Task
    from crewai.tools import tool

    @tool("get_weather")
    def get_weather(city: str) -> str:
        """The temperature in a city, in degrees Celsius."""
        return weather(city)

    @tool("to_fahrenheit")
    def to_fahrenheit(celsius: float) -> str:
        """Degrees Celsius in Fahrenheit."""
        return fahrenheit(celsius)

    llm = LLM(model="openai/gpt-x", base_url=URL, api_key="unused", stream=STREAMED)
    agent = Agent(
        role="weather", goal="answer", backstory="", llm=llm, tools=[get_weather, to_fahrenheit], max_retry_limit=0
    )
    task = Task(description=QUESTION, expected_output="a sentence", agent=agent)
    answer = Crew(agents=[agent], tasks=[task]).kickoff()
print(answer)
