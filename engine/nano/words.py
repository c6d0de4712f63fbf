"""The words in problems: everyday nouns, weekdays, and syllables of invented words for skills about letters."""

_NOUNS = """
ant apple arm axe bag ball band bank barn bear bed bee bell belt bird boat bone book boot bowl box bread bridge broom
brush bus cake camel camp candle cap car card cart castle cat cave chain chair cheese clock cloud coat coin comb cook
corn cow crab crown cup deer desk dish dog doll door dove dress drum duck eagle ear egg elbow engine farm feather
fence field fire fish flag flower foot fork fox frog game garden gate gift glass glove goat gold grape grass guitar
hammer hand hat hawk heart hill honey hook horn horse house ice ink iron island jacket jam jar jewel juice key king
kite knee knife lake lamp leaf lemon lion lock log map market mask milk mill mirror moon mouse nail neck nest net
night nose nut oak oar ocean olive onion orange oven owl paint palm pan paper park pea pear pen piano pig pillow pipe
plant plate pond pot queen rabbit radio rain ring river road robot rock roof rope rose sail salt sand seed shell ship
shirt shoe silver snow soap sock soup spoon star stone storm sugar sun tail tea tent tiger toad tool tooth tower toy
train tree truck tulip uncle unit urn valley van vase vest vine violin voice wagon wall watch water wave wheel window
wing wolf wood wool yard yarn zebra zoo
"""
NOUNS = _NOUNS.split()

SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
ENDINGS = ["", "", "l", "n", "r", "s", "t"]

WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
