"""The only modules that know Ray Data's, Ray's and `ray.data.llm`'s knobs."""
