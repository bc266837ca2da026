"""Words that the titles of the simulated catalogue are made of."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


ADJECTIVES = _words(
    "Amber Bitter Broken Crimson Distant Electric Fallen Frozen Gentle Golden Hidden Hollow Iron Last Lonely Lost "
    "Midnight Quiet Restless Secret Seventh Silver Velvet Wandering Wild Winter"
)
ENDINGS = _words("Chronicle Covenant Diaries Echo Garden House Legacy Letters Paradox Promise Rising Road Season Song")
# one list per genre; a title's genre word is its hint at the genre
GENRE_WORDS = (
    _words("Comet Galaxy Nebula Orbit Rocket Starship"),
    _words("Castle Dragon Knight Sorcerer Sword Wizard"),
    _words("Alibi Detective Evidence Murder Suspect Verdict"),
    _words("Bride Heart Kiss Lover Romance Wedding"),
    _words("Coffin Crypt Ghost Haunting Nightmare Phantom"),
    _words("Cowboy Outlaw Prairie Ranch Saddle Sheriff"),
    _words("Captain Harbour Mermaid Ocean Pirate Voyage"),
    _words("Battalion Frontline General Regiment Soldier Trench"),
    _words("Ballad Cabaret Jazz Melody Orchestra Piano"),
    _words("Champion Derby Goalkeeper League Marathon Stadium"),
    _words("Cipher Embassy Informant Sabotage Spy Traitor"),
    _words("Badger Forest Fox Meadow Otter Sparrow"),
)
