"""Three kinds of text that are no source, each in two families of templates: what a user's file is
like, and what else its use may bring.

Within a family every row fills one of five templates; the other family asks for the same in other
words.
"""

import json
import random
from pathlib import Path
from typing import Final

NAMES: Final = [
    "Ana",
    "Ben",
    "Carla",
    "Dev",
    "Eli",
    "Fatima",
    "Gus",
    "Hana",
    "Ivo",
    "June",
    "Kofi",
    "Lena",
]
THINGS: Final = ["apples", "pens", "stickers", "marbles", "books", "shells", "coins", "cards"]
GOODS: Final = (
    "kettle",
    "desk lamp",
    "backpack",
    "rain coat",
    "tent",
    "headset",
    "bicycle pump",
    "coffee mill",
    "keyboard",
    "blanket",
)
TABLES: Final = {
    "orders": "price",
    "visits": "minutes",
    "plants": "height",
    "flights": "seats",
    "songs": "length",
    "parcels": "weight",
}
PLACES: Final = ("city", "country", "owner", "colour", "branch")

TEMPLATES: Final = {
    "problems": (
        (
            (
                "{name} has {a} {thing} and buys {b} more. How many {thing} does {name} have now?",
                "{name} has {a} + {b} = {sum} {thing}.",
            ),
            (
                "There are {c} boxes with {a} {thing} in each of them. How many {thing} are there "
                "in all?",
                "There are {c} * {a} = {product} {thing}.",
            ),
            (
                "{name} had {sum} {thing} and gave {b} to a friend. How many are left?",
                "{sum} - {b} = {a} are left.",
            ),
            (
                "A pack of {thing} costs {c} euros. What do {a} packs cost?",
                "They cost {c} * {a} = {product} euros.",
            ),
            (
                "{name} counts {a} {thing} on Monday and {b} on Tuesday. What is the total?",
                "The total is {a} + {b} = {sum}.",
            ),
        ),
        (
            (
                "Work out the number of {thing} on a shelf of {c} rows if every row holds {a}.",
                "Multiply: {c} rows of {a} make {product}.",
            ),
            (
                "After a sale of {b}, a shop still keeps {a} {thing}. Find how many it began with.",
                "Add back what was sold: {a} and {b} make {sum}.",
            ),
            (
                "It takes {c} minutes to sort one of the {thing}. Give the minutes for {a} of "
                "these.",
                "Each needs {c}, so {a} need {product} minutes.",
            ),
            (
                "Two bags, one with {a} and one with {b} {thing}, are emptied on a table. Say "
                "what lies there.",
                "Both bags together: {sum} {thing}.",
            ),
            (
                "{name} wants {sum} {thing}, and so far owns {b}. Determine what is missing.",
                "Take {b} from {sum}, and {a} are missing.",
            ),
        ),
    ),
    "support": (
        (
            (
                "My {good} arrived with a crack. Order {a}{b}.",
                "Sorry to hear that, {name} here. We send a new {good} for order {a}{b} within "
                "{c} days.",
            ),
            (
                "Where is my {good}? I ordered it {c} days ago, number {a}{b}.",
                "Your {good} left our store; order {a}{b} should arrive within {c} days.",
            ),
            (
                "I want to send the {good} back, order {a}{b}.",
                "You can return the {good} within {a} days. The label for order {a}{b} is on its "
                "way.",
            ),
            (
                "Does the {good} come with a warranty?",
                "Yes, the {good} has a warranty of {c} years from the day of purchase.",
            ),
            (
                "Please cancel order {a}{b}, the {good}.",
                "Order {a}{b} is cancelled, and the {c}{a} euros for the {good} go back to your "
                "account.",
            ),
        ),
        (
            (
                "hello, the thing stopped working after {c} weeks ({good}), what now??",
                "Thanks for writing. Unplug the {good}, wait {c} minutes, try again.",
            ),
            (
                "invoice for the {good} please, customer {a}{b}",
                "Of course! The invoice of customer {a}{b} is attached to this message, {name}.",
            ),
            (
                "can i change the address, parcel {a}{b} is not out yet i think",
                "Done: parcel {a}{b} with the {good} now goes to the new address.",
            ),
            (
                "you charged me twice for a {good}!!",
                "We checked, and {c}{b} euros were charged twice. The money is returned today.",
            ),
            (
                "is there a bigger version of the {good} in stock",
                "At the moment {c} of the larger {good} are in our shop, the next come in {a} "
                "days.",
            ),
        ),
    ),
    "queries": (
        (
            (
                "How many {table} have a {column} of {a}?",
                "SELECT COUNT(*) FROM {table} WHERE {column} = {a};",
            ),
            (
                "What is the mean {column} of the {table} up to number {b}?",
                "SELECT AVG({column}) FROM {table} WHERE id <= {b};",
            ),
            (
                "List the {table} whose {column} is above {a}.",
                "SELECT * FROM {table} WHERE {column} > {a};",
            ),
            (
                "How many {table} are there for each {place}, without number {a}?",
                "SELECT {place}, COUNT(*) FROM {table} WHERE id <> {a} GROUP BY {place};",
            ),
            (
                "Which {c} {table} have the largest {column}?",
                "SELECT * FROM {table} ORDER BY {column} DESC LIMIT {c};",
            ),
        ),
        (
            (
                "Show every {place} that occurs among the first {a} {table}, once.",
                "SELECT DISTINCT {place} FROM {table} WHERE id <= {a};",
            ),
            (
                "Remove {table} with a {column} under {b}.",
                "DELETE FROM {table} WHERE {column} < {b};",
            ),
            (
                "Set the {column} of the {table} numbered {a} to {b}.",
                "UPDATE {table} SET {column} = {b} WHERE id = {a};",
            ),
            (
                "Add the {column} up over {table}, by {place}, and leave out sums under {a}.",
                "SELECT {place}, SUM({column}) AS total FROM {table} GROUP BY {place} HAVING "
                "total >= {a};",
            ),
            (
                "Give me smallest and largest {column} in {table} from {b} on.",
                "SELECT MIN({column}), MAX({column}) FROM {table} WHERE id >= {b};",
            ),
        ),
    ),
}
"""Of each target two families of (question, answer)."""


def rows(target: str, family: int, count: int = 400, seed: int = 1) -> list[dict[str, str]]:
    """Return `count` different rows of one family, the same whenever this is called; a template
    may have fewer fillings than its share.
    """
    chance = random.Random(f"{target} {family} {seed}")
    found: dict[str, str] = {}
    for place in range(1, 50 * count):
        if len(found) == count:
            break
        question, answer = TEMPLATES[target][family][place % 5]
        a, b, c = chance.randint(3, 60), chance.randint(2, 40), chance.randint(2, 9)
        table = chance.choice(list(TABLES))
        slots = {
            "a": a,
            "b": b,
            "c": c,
            "sum": a + b,
            "product": a * c,
            "table": table,
            "column": TABLES[table],
            "name": chance.choice(NAMES),
            "thing": chance.choice(THINGS),
            "good": chance.choice(GOODS),
            "place": chance.choice(PLACES),
        }
        found.setdefault(question.format(**slots), answer.format(**slots))
    return [{"question": question, "answer": answer} for question, answer in found.items()]


def write(folder: Path, count: int = 400) -> dict[tuple[str, int], str]:
    """Write a file for each family of each target, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[tuple[str, int], str] = {}
    for target in TEMPLATES:
        for family in (0, 1):
            path = folder / f"{target}-{'ab'[family]}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(target, family, count)))
            paths[target, family] = str(path)
    return paths
