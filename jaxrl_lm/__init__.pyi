from .training.environments.agent import load_agent as load_agent

__version__: str
