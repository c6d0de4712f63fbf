"""The only modules that know the knobs of Ray, Ray Data and `ray.data.llm`."""
