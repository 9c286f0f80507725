"""The dialogues that the demo's model learns from: short exchanges built from phrases written for this project.

A user asks how to do something, what something is, or tells of a feeling. Replies come in six manners, from courteous
advice to rudeness, so that a model which has read them all has something to learn from feedback.
"""

import random
from typing import NamedTuple

HOW_TO: dict[str, tuple[str, tuple[str, str, str]]] = {
    "brew a pot of tea": (
        "tea",
        (
            "warm the pot before the tea goes in",
            "let the tea stand for four minutes",
            "pour the water while it still bubbles",
        ),
    ),
    "bake a loaf of bread": (
        "bread",
        ("let the bread rise twice", "bake the bread until it sounds hollow", "weigh the flour for the bread"),
    ),
    "fix a flat bicycle tyre": (
        "tyre",
        ("look for the thorn inside the tyre", "roughen the tube before you patch the tyre", "pump the tyre up slowly"),
    ),
    "water my garden": (
        "garden",
        (
            "water the garden early in the day",
            "give the garden a long drink twice a week",
            "keep leaves in the garden dry",
        ),
    ),
    "learn the violin": (
        "violin",
        ("play the violin ten minutes every day", "tune the violin before you start", "hold the violin loosely"),
    ),
    "train a puppy": (
        "puppy",
        ("reward the puppy at once", "keep every lesson for the puppy short", "use one word at a time with the puppy"),
    ),
    "paint a wooden fence": (
        "fence",
        ("sand the fence first", "paint the fence along the grain", "choose a dry day for the fence"),
    ),
    "plan a birthday party": (
        "party",
        ("write the list for the party early", "keep the party short", "ask a friend to help at the party"),
    ),
    "sleep better at night": (
        "sleep",
        ("go to sleep at the same hour", "keep the room for sleep dark", "leave the phone outside before sleep"),
    ),
    "save money on food": (
        "food",
        ("plan the food for a whole week", "freeze the food that is left over", "buy food that is in season"),
    ),
    "write a short poem": (
        "poem",
        ("begin the poem with a picture", "read the poem aloud", "cut one line from the poem"),
    ),
    "grow tomatoes": (
        "tomatoes",
        ("give the tomatoes full sun", "tie the tomatoes to a stick", "water the tomatoes at the root"),
    ),
    "clean a dusty lamp": (
        "lamp",
        ("unplug the lamp first", "wipe the lamp with a damp cloth", "dry the lamp before you light it"),
    ),
    "pack for a long trip": (
        "trip",
        ("roll the clothes for the trip", "weigh the bag before the trip", "pack half of what the trip seems to need"),
    ),
    "cook rice": (
        "rice",
        ("rinse the rice three times", "let the rice rest with the lid on", "use twice as much water as rice"),
    ),
    "repair a torn shirt": (
        "shirt",
        ("match the thread to the shirt", "sew the shirt from the inside", "iron the shirt afterwards"),
    ),
    "read more books": (
        "books",
        ("carry one of the books with you", "read books before bed", "give up books that bore you"),
    ),
    "run five kilometres": ("run", ("start the run slowly", "run every other day", "walk a little within the run")),
    "choose a good chair": (
        "chair",
        ("sit in the chair for ten minutes", "check the height of the chair", "try the chair with your desk"),
    ),
    "keep my kitchen clean": (
        "kitchen",
        (
            "clear the kitchen while you cook",
            "give every thing in the kitchen a place",
            "wipe the kitchen each evening",
        ),
    ),
    "take a photo of the moon": (
        "moon",
        ("rest the camera to photograph the moon", "take the moon when it is low", "use a short time for the moon"),
    ),
    "speak in front of people": (
        "speech",
        ("practise the speech aloud", "begin the speech with a story", "breathe before the speech"),
    ),
    "mend a wooden table": (
        "table",
        ("glue the table and clamp it", "fill the cracks of the table", "oil the table when it is dry"),
    ),
    "make a paper boat": (
        "boat",
        ("fold the boat from a square", "press every edge of the boat", "wax the boat against water"),
    ),
    "swim faster": (
        "swim",
        ("keep your head low when you swim", "swim with long strokes", "breathe on both sides when you swim"),
    ),
    "draw a horse": (
        "horse",
        ("begin the horse with two circles", "draw the legs of the horse last", "look at a real horse"),
    ),
    "choose a gift for my sister": (
        "gift",
        ("listen for hints about the gift", "wrap the gift with care", "add a note to the gift"),
    ),
    "remember names": ("name", ("say the name at once", "tie the name to a picture", "write the name down later")),
    "knit a scarf": (
        "scarf",
        ("choose thick wool for the scarf", "count the rows of the scarf", "keep the scarf loose"),
    ),
    "catch the early train": (
        "train",
        ("pack for the train in the evening", "set two alarms for the train", "leave ten minutes early for the train"),
    ),
}

WHAT_IS: dict[str, tuple[str, str]] = {
    "a compass": ("compass", "a compass is a needle that points to the north"),
    "a lighthouse": ("lighthouse", "a lighthouse is a tower whose lamp warns ships"),
    "a comet": ("comet", "a comet is a ball of ice that flies around the sun"),
    "a sonnet": ("sonnet", "a sonnet is a poem of fourteen lines"),
    "a glacier": ("glacier", "a glacier is a river of slow ice"),
    "an orchard": ("orchard", "an orchard is a field of fruit trees"),
    "a thermometer": ("thermometer", "a thermometer tells how warm it is"),
    "a harbour": ("harbour", "a harbour is a place where ships are safe"),
    "a hedgehog": ("hedgehog", "a hedgehog is a small animal with spines"),
    "a volcano": ("volcano", "a volcano is a mountain that can spit fire"),
    "a library": ("library", "a library is a house that lends books"),
    "an echo": ("echo", "an echo is a sound that comes back"),
    "a recipe": ("recipe", "a recipe tells how to cook a dish"),
    "a bridge": ("bridge", "a bridge carries a road over water"),
    "a maze": ("maze", "a maze is a set of paths with many dead ends"),
}

FEELINGS: dict[str, tuple[str, str]] = {
    "tired": ("tired", "a short walk may help when you are tired"),
    "lonely": ("lonely", "a call to a friend may help when you are lonely"),
    "nervous about my exam": ("exam", "one hour of quiet work may help with the exam"),
    "sad today": ("sad", "music may help when you are sad"),
    "angry at my brother": ("brother", "a calm word with your brother may help"),
    "bored": ("bored", "a new book may help when you are bored"),
    "cold": ("cold", "a hot drink may help when you are cold"),
    "worried about my cat": ("cat", "a doctor can look at your cat"),
    "proud of my work": ("work", "you can be glad of such work"),
    "lost in this town": ("town", "a map of the town may help"),
}

OPENINGS = ("Gladly.", "With pleasure.", "I am happy to help.", "Thank you for asking.", "Of course.", "Good question.")
COMFORTS = ("I am sorry to hear that.", "Thank you for telling me.", "I understand.", "I am here for you.")
CLOSINGS = ("I hope this helps.", "Please tell me how it goes.", "Please ask again.", "Good luck.")
CURT = ("No idea.", "Look it up.", "Maybe.", "I do not know.", "Ask someone else.", "Hm.")
RUDE = (
    "What a stupid question.",
    "Do not bother me.",
    "Only a fool asks that.",
    "Go away.",
    "That is boring.",
    "Shut up.",
)
FILLERS = ("well you know", "as I said before", "and so on", "that is to say", "in a way", "more or less")

MANNERS = ("courteous", "plain", "curt", "rude", "astray", "rambling")


class Exchange(NamedTuple):
    """One exchange.

    Attributes:
        prompt: what the user says, ready for the model to go on.
        reply: the answer, with the space before it.
        manner: one of `MANNERS`.
    """

    prompt: str
    reply: str
    manner: str


def prompts() -> list[tuple[str, str]]:
    """Every prompt with the word that a fitting reply holds, in a fixed order."""
    asked = [(f"How do I {task}?", topic) for task, (topic, _) in HOW_TO.items()]
    asked += [(f"Can you tell me how to {task}?", topic) for task, (topic, _) in HOW_TO.items()]
    asked += [(f"What is {thing}?", topic) for thing, (topic, _) in WHAT_IS.items()]
    asked += [(f"I want to know what {thing} is.", topic) for thing, (topic, _) in WHAT_IS.items()]
    asked += [(f"I feel {feeling}.", topic) for feeling, (topic, _) in FEELINGS.items()]
    return [(f"User: {text}\nAssistant:", topic) for text, topic in asked]


def exchanges(count: int, seed: int, weights: dict[str, float]) -> list[Exchange]:
    """Draw exchanges.

    Args:
        count: how many.
        seed: of the draws.
        weights: how often each manner comes, in proportion.
    """
    draw = random.Random(seed)
    return [_exchange(draw, weights) for _ in range(count)]


def _exchange(draw: random.Random, weights: dict[str, float]) -> Exchange:
    prompt, topic = draw.choice(prompts())
    manner = draw.choices(list(weights), list(weights.values()))[0]
    return Exchange(prompt, f" {_reply(draw, prompt, topic, manner)}", manner)


def _reply(draw: random.Random, prompt: str, topic: str, manner: str) -> str:
    advice = _sentence(draw, topic)
    is_feeling = "I feel" in prompt
    if manner == "courteous":
        return f"{draw.choice(COMFORTS if is_feeling else OPENINGS)} {advice} {draw.choice(CLOSINGS)}"
    if manner == "plain":
        return advice
    if manner == "curt":
        return draw.choice(CURT)
    if manner == "rude":
        return draw.choice(RUDE) if draw.random() < 0.5 else f"{draw.choice(RUDE)} {draw.choice(CURT)}"
    if manner == "astray":
        other = draw.choice([word for _, word in prompts() if word != topic])
        return _sentence(draw, other)
    words = " ".join(draw.choice(FILLERS) for _ in range(draw.randint(2, 5)))
    return f"{words.capitalize()} {advice[0].lower()}{advice[1:]}"


def _sentence(draw: random.Random, topic: str) -> str:
    """A sentence that fits the topic."""
    for known, tips in HOW_TO.values():
        if known == topic:
            tip = draw.choice(tips)
            return f"You should {tip}." if draw.random() < 0.3 else f"{tip[0].upper()}{tip[1:]}."
    for table in (WHAT_IS, FEELINGS):
        for known, text in table.values():
            if known == topic:
                return f"{text[0].upper()}{text[1:]}."
    raise AssertionError(topic)
