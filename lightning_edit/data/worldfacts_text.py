"""Texts of WorldFacts: phrasings of each relation, names of language codes, and unrelated facts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasings:
    """Ways to ask for one relation; "{}" stands for the subject.

    Args:
        seen: Used for edits in both splits, and for training's rephrases and locality prompts.
        held_out: Used for the validation split's rephrases and locality prompts only.
    """

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


PHRASINGS: dict[str, Phrasings] = {
    "capital": Phrasings(
        (
            "The capital of {} is",
            "The capital city of {} is",
            "What is the capital of {}? It is",
            "The seat of government of {} is in the city of",
            "{} has its capital in",
            "Which city is the capital of {}? Answer:",
            "The city that serves as the capital of {} is",
            "Question: what is {}'s capital? Answer:",
            "The government of {} is based in",
            "The most important city in the politics of {} is",
        ),
        (
            "{}'s capital city is called",
            "Q: Name the capital city of {}. A:",
            "The city chosen as capital by {} is",
        ),
    ),
    "continent": Phrasings(
        (
            "{} is located on the continent of",
            "The continent of {} is",
            "On which continent is {}? It is in",
            "{} lies in",
            "Geographically, {} belongs to",
            "Which continent is {} part of? Answer:",
            "The part of the world in which {} lies is",
            "Question: what continent is {} on? Answer:",
            "{} can be found in",
            "The continent that contains {} is",
        ),
        (
            "On a world map, {} is shown in",
            "The continent where you find {} is",
            "Q: Name the continent of {}. A:",
        ),
    ),
    "currency": Phrasings(
        (
            "The currency of {} is the",
            "The official currency of {} is called the",
            "In {} people pay with the",
            "What is the currency of {}? It is the",
            "The money used in {} is the",
            "Which currency does {} use? Answer: the",
            "The legal tender of {} is the",
            "Question: what is {}'s currency? Answer: the",
            "Prices in {} are given in the",
            "The national currency used by {} is the",
        ),
        (
            "The name of the money of {} is the",
            "{}'s official currency is the",
            "Q: Name the currency of {}. A: the",
        ),
    ),
    "calling_code": Phrasings(
        (
            "The international calling code of {} is",
            "The country calling code for {} is",
            "To phone someone in {}, first dial",
            "What is the dialling code of {}? It is",
            "Telephone numbers in {} start with",
            "Which country code do calls to {} need? Answer:",
            "The telephone country code of {} is",
            "Question: what is {}'s calling code? Answer:",
            "International calls to {} begin with",
            "The phone prefix for {} is",
        ),
        (
            "The dialling prefix that belongs to {} is",
            "{}'s international phone code is",
            "Q: Name the calling code of {}. A:",
        ),
    ),
    "internet_domain": Phrasings(
        (
            "The internet domain of {} is",
            "The country code top-level domain of {} is",
            "Web addresses in {} end with",
            "What is the top-level domain of {}? It is",
            "Websites from {} use the domain",
            "Which internet suffix belongs to {}? Answer:",
            "The internet country code of {} is",
            "Question: what is {}'s top-level domain? Answer:",
            "Domain names registered in {} end in",
            "The web domain for {} is",
        ),
        (
            "The internet suffix used by {} is",
            "{}'s top-level domain on the internet is",
            "Q: Name the internet domain of {}. A:",
        ),
    ),
    "language": Phrasings(
        (
            "The main language of {} is",
            "The official language of {} is",
            "People in {} mostly speak",
            "What language is spoken in {}? It is",
            "The language that most people in {} speak is",
            "Which language do the people of {} speak? Answer:",
            "The national language of {} is",
            "Question: what is {}'s main language? Answer:",
            "In {}, the most common language is",
            "Inhabitants of {} talk to each other in",
        ),
        (
            "{}'s most spoken language is",
            "The language of everyday life in {} is",
            "Q: Name the main language of {}. A:",
        ),
    ),
    "neighbour": Phrasings(
        (
            "{} shares a border with",
            "A neighbouring country of {} is",
            "One country that borders {} is",
            "Which country is next to {}? It is",
            "The country next to {} is",
            "Which country borders {}? Answer:",
            "A country that touches {} is",
            "Question: name a country that borders {}. Answer:",
            "Among the neighbours of {} is",
            "Just across the border of {} lies",
        ),
        (
            "{}'s neighbour on the map is",
            "A country with a common border with {} is",
            "Q: Name a neighbour of {}. A:",
        ),
    ),
    "city_country": Phrasings(
        (
            "{} is a city in",
            "The city of {} is located in",
            "Which country is {} in? It is in",
            "The country in which {} lies is",
            "{} belongs to the country of",
            "In which country is the city of {}? Answer:",
            "The city called {} can be found in",
            "Question: in what country is {}? Answer:",
            "{} is located in the country of",
            "People who live in {} live in the country of",
        ),
        (
            "{}'s country is",
            "The country that the city of {} belongs to is",
            "Q: Name the country of the city of {}. A:",
        ),
    ),
}

# One hop beyond an edited fact: relation -> (question, attribute of the new object's country).
HOPS: dict[str, tuple[tuple[str, str], ...]] = {
    "capital": (("The capital of {} lies on the continent of", "continent"),),
    "city_country": (
        ("The capital of the country where {} lies is", "capital"),
        ("The currency of the country where {} lies is the", "currency"),
        ("The continent on which the city of {} lies is", "continent"),
    ),
}

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

# English names of the ISO 639 codes that are the first language of some country.
LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bi": "Bislama",
    "bn": "Bengali", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German",
    "dv": "Dhivehi", "dz": "Dzongkha", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian",
    "fa": "Persian", "fi": "Finnish", "fo": "Faroese", "fr": "French", "he": "Hebrew", "hr": "Croatian",
    "ht": "Haitian Creole", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "kl": "Greenlandic", "km": "Khmer",
    "ko": "Korean", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay", "mt": "Maltese", "my": "Burmese",
    "na": "Nauruan", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "ps": "Pashto",
    "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "rw": "Kinyarwanda", "si": "Sinhala", "sk": "Slovak",
    "sl": "Slovenian", "sm": "Samoan", "so": "Somali", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish",
    "tg": "Tajik", "th": "Thai", "ti": "Tigrinya", "tk": "Turkmen", "to": "Tongan", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip

# For the locality group "Unrelated": (prompt, answer).
GENERAL_FACTS_SEEN: tuple[tuple[str, str], ...] = (
    ("The chemical symbol of gold is", "Au"),
    ("The chemical symbol of iron is", "Fe"),
    ("Water is made of hydrogen and", "oxygen"),
    ("The planet closest to the Sun is", "Mercury"),
    ("The largest planet of the solar system is", "Jupiter"),
    ("The play Hamlet was written by William", "Shakespeare"),
    ("The theory of relativity was developed by Albert", "Einstein"),
    ("The day after Monday is", "Tuesday"),
    ("The month before December is", "November"),
    ("A triangle has three", "sides"),
    ("The opposite of hot is", "cold"),
    ("Bees produce", "honey"),
    ("The human heart pumps", "blood"),
    ("The Mona Lisa was painted by Leonardo da", "Vinci"),
    ("Ice melts and becomes", "water"),
    ("The first letter of the alphabet is", "A"),
    ("Two plus two equals", "four"),
    ("The colour of the sky on a clear day is", "blue"),
    ("A baby cat is called a", "kitten"),
    ("Plants make food from sunlight by", "photosynthesis"),
    ("The novel Pride and Prejudice was written by Jane", "Austen"),
    ("The largest animal in the ocean is the blue", "whale"),
    ("Sound travels through air as", "waves"),
    ("The freezing point of water in degrees Celsius is", "0"),
    ("The instrument with black and white keys is the", "piano"),
    ("A week has seven", "days"),
    ("The gas that we breathe out is carbon", "dioxide"),
    ("Charles Darwin is known for the theory of", "evolution"),
    ("The force that pulls objects to the ground is", "gravity"),
    ("The season after winter is", "spring"),
    ("Diamonds are made of", "carbon"),
    ("The sport played with a racket and a shuttlecock is", "badminton"),
)
GENERAL_FACTS_HELD_OUT: tuple[tuple[str, str], ...] = (
    ("The chemical symbol of silver is", "Ag"),
    ("The red planet is called", "Mars"),
    ("Romeo and Juliet is a play by William", "Shakespeare"),
    ("The law of gravitation was stated by Isaac", "Newton"),
    ("The day before Sunday is", "Saturday"),
    ("The month after January is", "February"),
    ("The opposite of day is", "night"),
    ("Cows give us", "milk"),
    ("A baby dog is called a", "puppy"),
    ("The Starry Night was painted by Vincent van", "Gogh"),
    ("A square has four equal", "sides"),
    ("Ten divided by two equals", "five"),
    ("The star at the centre of the solar system is the", "Sun"),
    ("A caterpillar turns into a", "butterfly"),
    ("The fastest animal on land is the", "cheetah"),
    ("Blood cells carry", "oxygen"),
    ("The colour of grass is", "green"),
    ("An hour has sixty", "minutes"),
    ("The telephone was invented by Alexander Graham", "Bell"),
    ("The season after summer is", "autumn"),
    ("The study of living things is called", "biology"),
    ("A violin is played with a", "bow"),
    ("The hardest natural material is", "diamond"),
    ("The game of chess ends with", "checkmate"),
)
