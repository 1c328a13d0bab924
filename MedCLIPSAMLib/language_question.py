"""What a language model is asked, and where: checked so that words alone leave the computer.

The question is the template of Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 3.2. It holds two phrases of
the user's, the target and the modality. Neither an image nor a file can get into it, and what looks like a file name, a
date or a number of a patient is refused. A person's name is a word like any other and cannot be recognised: that is why
the whole text is shown before it is sent.
"""

from __future__ import annotations

import ipaddress
import json
import re
import unicodedata
from dataclasses import dataclass
from urllib.parse import urlsplit

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompt_sets import LLM_TEMPLATE

KEY_VARIABLE = "MEDCLIPSAM_LLM_KEY"
DEFAULT_COUNT, LARGEST_COUNT = 20, 100
LONGEST_PHRASE, MOST_WORDS = 80, 8
DIGITS_OF_A_WORD, DIGITS_IN_ALL = 2, 4  # COVID-19, T2, L4-L5 pass; years, sizes and numbers of patients do not

_WHY = "Only words leave this computer: no file names, no dates, no numbers of patients."
_PATH = "/chat/completions"
_MONTH = "jan feb mar apr may jun jul aug sep sept oct nov dec january february march april june july august september"
_MONTHS = "|".join([*_MONTH.split(), "october", "november", "december"])
_DATE = re.compile(rf"\d\s*[-' ]\s*\d|\d(?:st|nd|rd|th)?[-' ]*(?:{_MONTHS})\b|\b(?:{_MONTHS})[-' ]*\d", re.IGNORECASE)
_OF_A_PATIENT = re.compile(r"\b(?:patients?|names?|named|born|birthday|birthdate|dob|mrn)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One question to one model.

    Attributes:
        target: What to describe, a short phrase such as "breast tumor".
        modality: Of the images, such as "breast ultrasound".
        endpoint: Base address of an OpenAI-compatible server, such as "https://api.example.org/v1" or
            "http://localhost:11434/v1"; HTTPS, but for this computer.
        model: As the server calls it.
        count: How many sentences are wanted, 1 to 100.

    Raises:
        InputError: One of them cannot be used; the message says which and why.
    """

    target: str
    modality: str
    endpoint: str
    model: str
    count: int = DEFAULT_COUNT

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", check_phrase(self.target, "target", "breast tumor"))
        object.__setattr__(self, "modality", check_phrase(self.modality, "modality", "breast ultrasound"))
        object.__setattr__(self, "endpoint", check_endpoint(self.endpoint))
        object.__setattr__(self, "model", _check_model(self.model))
        if not isinstance(self.count, int) or not 1 <= self.count <= LARGEST_COUNT:
            raise InputError(f"{self.count!r} sentences were asked for; take 1 to {LARGEST_COUNT}.")

    @property
    def text(self) -> str:
        """The question in words."""
        asked = LLM_TEMPLATE.format(target=self.target, modality=self.modality)
        if self.count == 1:
            return f"{asked} Reply with that sentence alone."
        return f"{asked} Give {self.count} different ones, one a line, without numbers and without any other text."

    @property
    def url(self) -> str:
        """Where it is sent to."""
        return self.endpoint + _PATH

    @property
    def host(self) -> str:
        """The server's name."""
        return urlsplit(self.endpoint).hostname or ""

    @property
    def stays_here(self) -> bool:
        """Whether the server is this computer."""
        return is_this_computer(self.host)

    @property
    def body(self) -> str:
        """What is sent, to the letter."""
        content = {"model": self.model, "messages": [{"role": "user", "content": self.text}]}
        return json.dumps(content, indent=2, ensure_ascii=False)

    @property
    def headers(self) -> dict[str, str]:
        """What is sent along with it, but for the key."""
        return {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "MedCLIPSAM"}

    def outgoing(self, with_key: bool) -> str:
        """Return the request as it is shown to the user before it is sent.

        Args:
            with_key: Whether a key goes with it; its value is not shown.
        """
        lines = [f"POST {self.url}", *(f"{name}: {value}" for name, value in self.headers.items())]
        lines += ["Authorization: Bearer (your key)"] if with_key else []
        return "\n".join([*lines, "", self.body])


def check_phrase(text: str, what: str, example: str) -> str:
    """Return a short phrase of words, without outer white space, that may leave the computer.

    Args:
        text: Letters of any script, blanks, hyphens, apostrophes, and few digits.
        what, example: For the message.

    Raises:
        InputError: Anything else; see the module's description.
    """
    phrase = " ".join(unicodedata.normalize("NFKC", text).replace("’", "'").split()) if isinstance(text, str) else ""
    remedy = f"pass a short phrase such as {example!r}. {_WHY}"
    if not any(character.isalpha() for character in phrase):
        raise InputError(f"the {what} {str(text)[:40]!r} holds no word; {remedy}")
    if len(phrase) > LONGEST_PHRASE or len(phrase.split()) > MOST_WORDS:
        raise InputError(
            f"the {what} has {len(phrase.split())} words and {len(phrase)} characters, more than {MOST_WORDS} or "
            f"{LONGEST_PHRASE}; {remedy}"
        )
    for character in phrase:
        if unicodedata.category(character)[0] not in "LM" and not character.isdecimal() and character not in " -'":
            raise InputError(f"the {what} {phrase!r} holds {character!r}; {remedy}")
    numbers = [sum(character.isdecimal() for character in word) for word in phrase.split()]
    if max(numbers) > DIGITS_OF_A_WORD or sum(numbers) > DIGITS_IN_ALL:
        raise InputError(f"the {what} {phrase!r} holds a number of {max(numbers)} digits or many digits; {remedy}")
    if _DATE.search(phrase):
        raise InputError(f"the {what} {phrase!r} looks as if it held a date or a number; {remedy}")
    if found := _OF_A_PATIENT.search(phrase):
        raise InputError(f"the {what} {phrase!r} speaks of a patient ({found.group()!r}); {remedy}")
    return phrase


def check_endpoint(address: str) -> str:
    """Return the base address of a server without a slash at its end.

    Raises:
        InputError: Not HTTPS (but for this computer), or with a user name, a query or characters that no address has.
    """
    example = "'https://api.example.org/v1' or 'http://localhost:11434/v1'"
    address = address.strip() if isinstance(address, str) else ""
    if not re.fullmatch(r"https?://[A-Za-z0-9\[][A-Za-z0-9.:\]-]*(?:/[A-Za-z0-9._~%/-]*)?", address):
        raise InputError(
            f"the endpoint {_without_secrets(address)!r} cannot be used; pass the base address of an OpenAI-compatible "
            f"server such as {example}, without user name and query. A key belongs into {KEY_VARIABLE}."
        )
    try:
        parts = urlsplit(address)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = None, False
    if parts is None or not port_is_fine or not parts.hostname:
        raise InputError(f"the endpoint {address!r} has no proper host and port; pass one such as {example}.")
    if parts.scheme == "http" and not is_this_computer(parts.hostname):
        raise InputError(
            f"the endpoint {address!r} is not encrypted; take https://. Plain http:// is for this computer alone."
        )
    path = parts.path.rstrip("/").removesuffix(_PATH).rstrip("/")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def is_this_computer(host: str) -> bool:
    """Return whether a host name or address is this computer's own (localhost, 127.0.0.0/8, ::1)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_model(model: str) -> str:
    model = model.strip() if isinstance(model, str) else ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,119}", model):
        raise InputError(
            f"the model {model!r} cannot be used; pass its name as the server calls it, such as 'llama3.2'."
        )
    return model


def _without_secrets(address: str) -> str:
    """Return an address without user name, password and query, which may hold a key."""
    return re.sub(r"//[^/]*@", "//…@", address).partition("?")[0][:120]
