"""An endpoint is looked at before it is measured: what it says of itself, and whether prompts come out exact."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loadtest.endpoints.base import Description, EndpointError, parse_url
from loadtest.endpoints.tgi import TgiEndpoint
from loadtest.prompts import PromptError, Prompts, probe_text, word_lengths
from loadtest.transport.base import Connect, Target, TransportError


@dataclass(frozen=True, slots=True)
class Site:
    """An endpoint that has been looked at and can be measured."""

    url: str
    target: Target
    endpoint: TgiEndpoint
    description: Description
    prompts: Prompts


def look_at(url: str, control: Connect, seed: str, lengths: Iterable[int], total_tokens: int) -> Site:
    """Ask the endpoint what it is, and prove that prompts have the length they should. `control` opens connections
    whose requests aren't timed.

    Raises: EndpointError with what it said and the remedy.
    """
    endpoint, target = TgiEndpoint(), parse_url(url)
    connection = control(target)
    try:
        description = endpoint.describe(connection)
        most = description.max_total_tokens
        if most is not None and total_tokens > most:
            raise EndpointError(
                f"{url} takes at most {most} tokens, prompt and new ones together; this run needs {total_tokens}: "
                "serve a longer model or measure shorter cells"
            )
        prompts = Prompts(*word_lengths(endpoint.tokenize(connection, probe_text())), seed=seed)
        for length in lengths:
            counted = len(endpoint.tokenize(connection, prompts.draw(length)))
            if counted != length:
                raise EndpointError(
                    f"a prompt made of {length} tokens has {counted} by the server's count: its tokenizer merges "
                    "words, and prompts of an exact length can't be made for it in this version"
                )
    except TransportError as error:
        raise EndpointError(f"{url} does not answer: {error}; is it running, and is the URL right?") from error
    except PromptError as error:
        raise EndpointError(str(error)) from error
    finally:
        connection.close()
    return Site(url, target, endpoint, description, prompts)
