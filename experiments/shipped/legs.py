"""The story of a model from those of its networks: all legs of training, each counted once."""

LEG = ("config", "command", "seed", "commit", "hardware", "seconds", "steps", "figures")
"""What every leg tells."""


def legs_of(network, story):
  """The legs of a network's training, each with the network's name."""
  legs = (story or {}).get("legs") or [story or {}]
  for leg in legs:
    if missing := [key for key in LEG if key not in leg]:
      raise SystemExit(f"release: a leg of {network} tells no {', '.join(missing)}")
  return [{"network": network} | leg for leg in legs]


def since(story, before):
  """The story of a network that began as another one, without the legs of that one."""
  shared = before.get("legs") or [before]
  return story | {"legs": [leg for leg in story["legs"] if leg not in shared]}


def merged(stories):
  """One story of all networks: the last leg's keys, time of all legs, and the legs in order."""
  legs = [leg for network, story in stories.items() for leg in legs_of(network, story)]
  last = {key: value for key, value in legs[-1].items() if key != "network"}
  return last | {"seconds": round(sum(leg["seconds"] for leg in legs), 1), "legs": legs}
