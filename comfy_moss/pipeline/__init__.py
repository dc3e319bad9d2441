"""The methods: draft, frequency, dispatch, refine and composite of Mixture of Scales, and the baselines beside it."""
